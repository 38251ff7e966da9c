"""What checkpoints over time and samples cost a training: its time with them over its time without, and their share measured directly.

    python tests/benchmarks/keeping_speed.py TEXT [--rounds 3] [--steps 1000] [--times 10] [--threads 0]

A sample every 100 steps is about what three minutes have. Each round trains the default model three times, in turn: plain, with
`--times` checkpoints kept, and with as many samples, each in a process of its own that also times what happens inside keeping and
sampling. Prints JSON: medians over rounds of seconds, processor seconds, their ratios to plain of the same round, and the share of the
training time spent inside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIANTS = ("plain", "keep", "sample")


def timed(owner: Any, name: str, spent: list[float]) -> None:
    """Replace a method by one that adds its seconds to `spent`."""
    real: Callable[..., Any] = getattr(owner, name)

    def measured(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return real(*arguments, **named)
        finally:
            spent.append(time.perf_counter() - began)

    setattr(owner, name, measured)


def train(text: Path, variant: str, steps: int, times: int, threads: int) -> dict[str, float]:
    """Train once in this process."""
    from minigpt_cli.cli import run
    from minigpt_cli.runstore.store import RunStore
    from minigpt_cli.training.keeping import Keeper
    from minigpt_cli.training.sampler import Sampler

    every = steps // times
    spent: list[float] = []
    timed({"keep": Keeper, "sample": Sampler}.get(variant, Keeper), "__call__", spent)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max-steps", str(steps), "--eval-every", str(every), "--tokenizer", "char", "--seed", "1", "--threads", str(threads)]
        flags += ["--keep-every", str(every if variant == "keep" else 0), "--sample-every", str(every if variant == "sample" else 0)]
        began, processor = time.perf_counter(), time.process_time()
        if code := run(["train", str(text), *flags, "--runs-dir", folder, "--name", "run", "--json"]):
            raise SystemExit(code)
        elapsed_s = RunStore(folder).find("run").record.elapsed_s
        return {
            "train_s": elapsed_s,
            "command_s": time.perf_counter() - began,
            "cpu_s": time.process_time() - processor,
            "inside_s": sum(spent),
            "inside_share": sum(spent) / elapsed_s,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--times", type=int, default=10, help="checkpoints kept, or samples written")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train(options.text, options.one, options.steps, options.times, options.threads)), file=sys.stderr)
        return
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds):
        order = VARIANTS if number % 2 == 0 else VARIANTS[::-1]
        found = {}
        for variant in order:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", variant]
            ended = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            found[variant] = json.loads(ended.stderr.splitlines()[-1])
        rounds.append(found)
        print(json.dumps(found), file=sys.stderr, flush=True)
    result: dict[str, Any] = {"rounds": options.rounds, "steps": options.steps, "times": options.times}
    for variant in VARIANTS:
        result[variant] = {name: round(statistics.median(r[variant][name] for r in rounds), 4) for name in rounds[0][variant]}
        if variant != "plain":
            for name in ("train_s", "cpu_s"):
                ratios = [r[variant][name] / r["plain"][name] for r in rounds]
                result[variant][f"{name}_over_plain"] = [round(value, 4) for value in (min(ratios), statistics.median(ratios), max(ratios))]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
