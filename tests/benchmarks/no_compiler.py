"""What a C compiler is worth: a training step and decoding with the machine's compiler, with the one in ziglang (pip install
'minigpt-cli[native]'), and with none, where torch computes everything. Times and ratios as JSON.

    python tests/benchmarks/no_compiler.py --rounds 3

- Step: `minigpt train` of the plain recipe's default model, once with more and once with fewer steps; the difference by the step.
- Decoding: 6 x 384 with random weights, sampled text in tokens per second, one stream and sixteen samples of one prompt.
- Build: seconds until the decoder's library is there, with an empty cache.
Sides take turns. Each has a cache of its own; ziglang's and none see a PATH without compilers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BUILD = "from minigpt_cli.generation.decoders import c; print(c.available(), c.why_not())"
DECODE = """
import sys
import torch
from generation_speed import build, ours
torch.set_num_threads(int(sys.argv[1]))
loaded = build("6x384")
for samples in (1, 16):
    speed = ours(loaded, int(sys.argv[1]), samples=samples)[0]
    speed(16)
    print(speed(120))
"""


def environments(folder: Path) -> dict[str, dict[str, str]]:
    """The environment of each side."""
    bare = {**os.environ, "PATH": str(Path(sys.executable).parent), "CC": "", "MINIGPT_DATA_DIR": str(folder / "data")}
    sides = {"compiler": {**bare, "PATH": os.environ["PATH"], "CC": os.environ.get("CC", "")}, "none": {**bare, "MINIGPT_NATIVE": "0"}}
    if importlib.util.find_spec("ziglang"):
        sides["ziglang"] = bare
    for name, environment in sides.items():
        environment |= {"XDG_CACHE_HOME": str(folder / name), "MINIGPT_RUNS_DIR": str(folder / f"{name}-runs")}
    return sides


def output(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds of a Python command, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        raise SystemExit(f"{command} failed: {done.stderr}")
    return time.perf_counter() - began, done.stdout


def train(steps: int, options: argparse.Namespace, environment: dict[str, str]) -> float:
    """Seconds of a training of so many steps."""
    flags = f"--max-steps {steps} --eval-every {steps} --eval-iters 1 --device cpu --threads {options.threads}"
    return output(["-m", "minigpt_cli", "train", options.text, *flags.split()], environment)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="tinyshakespeare")
    parser.add_argument("--steps", type=int, nargs=2, default=(20, 80))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        sides = environments(Path(name))
        for side, environment in sides.items():
            seconds, said = output(["-c", BUILD], environment)
            report[side] = {"build_s": round(seconds, 1), "library": said.strip(), "step_ms": [], "one": [], "sixteen": []}
            train(1, options, environment)  # builds the kernels, prepares the text
        for _ in range(options.rounds):
            for side, environment in sides.items():
                few, many = (train(steps, options, environment) for steps in options.steps)
                report[side]["step_ms"].append((many - few) / (options.steps[1] - options.steps[0]) * 1e3)
                one, sixteen = output(["-c", DECODE, str(options.threads)], environment)[1].split()
                report[side]["one"].append(float(one))
                report[side]["sixteen"].append(float(sixteen))
    for found in report.values():
        found |= {key: round(statistics.median(found[key]), 1) for key in ("step_ms", "one", "sixteen")}
    for found in report.values():
        found["ratio"] = {
            "step": round(found["step_ms"] / report["compiler"]["step_ms"], 2),
            **{key: round(report["compiler"][key] / found[key], 2) for key in ("one", "sixteen")},
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
