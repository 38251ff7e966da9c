"""Is a resumed run the uninterrupted one, and where it is not, is that said? Each case trains a run whole, trains it again up to a save,
resumes it with something changed around it, and compares every tensor of last, best and resume and every metric.

    python tests/benchmarks/resume_environments.py --text TEXT --out FOLDER [--only 'NAME|NAME']

JSON on stdout; exit 1 if a case differs and was called exact, or is the same place and was not. Last, six runs with attention=auto beside
two busy processes: all must choose the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import ENVIRONMENT
from harness.results import everything

from minigpt_cli.runstore.directory import Run

MINIGPT = [sys.executable, "-m", "minigpt_cli"]
SIZE = ["--n-layer", "2", "--n-embd", "32", "--n-head", "2", "--block-size", "32", "--batch-size", "8", "--precision", "bf16"]
SAVES = ["--eval-every", "20", "--save-every", "7"]
PLAIN, DROPOUT = ["--attention", "plain"], ["--dropout", "0.1"]


@dataclass(frozen=True)
class Case:
    """A run, and what changes around it before it is resumed."""

    flags: list[str]
    resume_flags: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)  # of the resume
    steps: int = 60
    same: bool = False  # nothing changes: it has to be exact


COMPILED = ["--compile", "on", "--n-layer", "1", *PLAIN]
CASES = {
    "nothing": Case([*PLAIN, *DROPOUT], same=True),
    "sdpa": Case(["--attention", "sdpa", *DROPOUT], same=True),
    "sdpa, checkpointed": Case(["--attention", "sdpa", *DROPOUT, "--grad-checkpoint"], same=True),
    "mixture": Case(["--arch", "moe", "--moe-balance", "bias", *PLAIN, *DROPOUT, "--grad-accum", "2"], same=True),
    "attention=auto": Case([], same=True),
    "compiled classic, dropout": Case(["--arch", "classic", *COMPILED, *DROPOUT], same=True),
    "compiled modern, sdpa": Case([*COMPILED, *DROPOUT, "--attention", "sdpa"], same=True),
    "compiled modern, float32": Case([*COMPILED, "--precision", "fp32"], same=True),
    "compiled mixture": Case(["--arch", "moe", *COMPILED, *DROPOUT], same=True),
    "compiled, checkpointed": Case([*COMPILED, *DROPOUT, "--grad-checkpoint"], same=True),
    "without our kernels": Case(PLAIN, environment={"MINIGPT_NATIVE": "0"}),
    "without our kernels, float32": Case([*PLAIN, "--precision", "fp32"], environment={"MINIGPT_NATIVE": "0"}),
    "no compiler, empty cache": Case(PLAIN, environment={"PATH": "/nowhere", "CC": "", "XDG_CACHE_HOME": "@cache"}),
    "ONEDNN_MAX_CPU_ISA": Case(PLAIN, environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "ATEN_CPU_CAPABILITY": Case(PLAIN, environment={"ATEN_CPU_CAPABILITY": "default"}),
    "MKL_CBWR": Case([*PLAIN, "--precision", "fp32"], environment={"MKL_CBWR": "COMPATIBLE"}),
    "MKL_ENABLE_INSTRUCTIONS": Case([*PLAIN, "--precision", "fp32"], environment={"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
    "OMP_NUM_THREADS": Case([*PLAIN, "--threads", "2"], environment={"OMP_NUM_THREADS": "1"}, same=True),
    "OMP_THREAD_LIMIT": Case([*PLAIN, "--threads", "2"], environment={"OMP_THREAD_LIMIT": "1"}),
    "how threads wait": Case([*PLAIN, "--threads", "2"], environment={"OMP_WAIT_POLICY": "PASSIVE"}, same=True),
    "--threads": Case(PLAIN, ["--threads", "2"]),
    "--attention": Case(PLAIN, ["--attention", "sdpa"]),
    "--compile": Case([*PLAIN, "--n-layer", "1"], ["--compile", "on"]),
    "--batch-size": Case(PLAIN, ["--batch-size", "4", "--grad-accum", "2"]),
}


class Bench:
    """Runs of one folder."""

    def __init__(self, text: Path, out: Path) -> None:
        self.text, self.out = text, out
        self.environment = {**ENVIRONMENT, "MINIGPT_RUNS_DIR": str(out / "runs"), "MINIGPT_DATA_DIR": str(out / "data")}

    def command(self, *arguments: str) -> list[str]:
        return [*MINIGPT, "train", *arguments]

    def begin(self, name: str, case: Case) -> list[str]:
        shutil.rmtree(self.run(name), ignore_errors=True)
        threads = [] if "--threads" in case.flags else ["--threads", "1"]
        flags = merged([*SIZE, *SAVES, *threads, "--max-steps", str(case.steps)], case.flags)
        return self.command(str(self.text), "--name", name, *flags)

    def run(self, name: str) -> Path:
        return self.out / "runs" / name

    def whole(self, case: Case) -> dict[str, Any]:
        subprocess.run(self.begin("whole", case), env=self.environment, check=True, capture_output=True)
        return everything(Run(self.run("whole")))

    def interrupted(self, case: Case) -> int:
        """Train up to about a third and end by SIGTERM; the step that was saved."""
        process = subprocess.Popen(self.begin("parts", case), env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and saved_step(self.run("parts")) < case.steps // 3:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        process.wait()
        return saved_step(self.run("parts"))

    def judged(self, case: Case) -> dict[str, Any]:
        expected, step = self.whole(case), self.interrupted(case)
        changed = {name: value.replace("@cache", str(self.out / "cache")) for name, value in case.environment.items()}
        resumed = subprocess.run(
            self.command("--resume", "parts", *case.resume_flags), env={**self.environment, **changed}, capture_output=True, text=True
        )
        if resumed.returncode:
            return {"step": step, "failed": resumed.stderr.strip().splitlines()[-1:], "kept": False}
        found = everything(Run(self.run("parts")))
        different = sorted(name for name in expected if found.get(name) != expected[name])
        (session,) = json.loads((self.run("parts") / "run.json").read_text())["resume_exact_history"]
        said = sum("not exact to the bit" in line for line in resumed.stderr.splitlines())
        kept = (session["exact"] or said == 1) and not (different and session["exact"]) and (session["exact"] or not case.same)
        return {"step": step, "equal": not different, "exact": session["exact"], "reasons": session["reasons"], "kept": kept}

    def attention_under_load(self, runs: int = 6) -> list[str]:
        """What attention=auto chooses in runs one after the other, the first with an empty cache, beside two busy processes."""
        environment = {**self.environment, "XDG_CACHE_HOME": str(self.out / "choices")}
        shutil.rmtree(self.out / "choices", ignore_errors=True)
        chosen = []
        for number in range(runs):
            with neighbours(2 if number % 2 else 4):
                name = f"auto-{number}"
                shutil.rmtree(self.run(name), ignore_errors=True)
                flags = ["--n-layer", "2", "--max-steps", "2", "--eval-iters", "1"]
                command = self.command(str(self.text), "--name", name, *flags)
                subprocess.run(command, env=environment, check=True, capture_output=True)
                chosen.append(json.loads((self.run(name) / "config.json").read_text())["compute"]["attention"])
        return chosen


def merged(flags: list[str], more: list[str]) -> list[str]:
    """`flags` and `more`; of a flag in both, that of `more`."""
    drop = {index for name in more if name.startswith("--") and name in flags for index in (flags.index(name), flags.index(name) + 1)}
    return [word for index, word in enumerate(flags) if index not in drop] + more


def saved_step(run: Path) -> int:
    try:
        return int(json.loads((run / "run.json").read_text())["stop_step"])
    except (OSError, ValueError, KeyError):
        return 0


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="names, separated by |; 'load' for the choice under load alone")
    options = parser.parse_args()
    bench, only = Bench(options.text.resolve(), options.out.resolve()), [name.strip() for name in options.only.split("|") if name]
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        if not only or name in only:
            results[name] = bench.judged(case)
            print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    good = all(result["kept"] for result in results.values())
    if not only or "load" in only:
        results["attention=auto under load"] = chosen = bench.attention_under_load()
        good = good and len(set(chosen)) == 1
    print(json.dumps(results, indent=2))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
