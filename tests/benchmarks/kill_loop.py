"""SIGKILL real training processes at random moments, resume them, and compare the end, bit for bit, with a run that was left alone.

    python tests/benchmarks/kill_loop.py --rounds 500 [--seed 0] [--arch modern]

A round is one kill. Each process is a fork of this one (which has imported torch, so that a round takes a fraction of a
second) and runs the command line as typed: `minigpt train … --name N`, then `minigpt train --resume N` until it ends.
After every kill the newest save that was seen must still be there. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from minigpt_cli import checkpoints, cli
from minigpt_cli.commands import running, train  # noqa: F401 - imported before the fork
from minigpt_cli.errors import RunDamaged
from minigpt_cli.runstore import Run
from minigpt_cli.training import trainer  # noqa: F401

MODEL = {
    "bigram": ["--arch", "bigram", "--block-size", "8"],
    "classic": ["--arch", "classic", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "8", "--dropout", "0.2"],
    "modern": [
        "--arch",
        "modern",
        "--n-layer",
        "1",
        "--n-head",
        "2",
        "--n-embd",
        "16",
        "--block-size",
        "8",
        "--dropout",
        "0.1",
        "--ema",
        "0.9",
    ],
    "moe": ["--arch", "moe", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "8", "--n-experts", "3"],
}
PLAN = [
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--attention",
    "plain",
    "--compile",
    "off",
    "--threads",
    "1",
    "--batch-size",
    "4",
    "--max-steps",
    "24",
    "--warmup-steps",
    "3",
    "--eval-every",
    "4",
    "--eval-iters",
    "2",
    "--save-every",
    "1",
    "--patience",
    "50",
    "--seed",
    "11",
]
TIMES = {
    "elapsed_s",
    "tokens_per_s",
    "created_at",
    "updated_at",
    "placed_at",
    "resume_exact_history",
    "name",
    "run",
    "files",
    "metrics_bytes",
    "argv",
    "dataset_dir",
    "label",
}


def timeless(value: Any) -> Any:
    """JSON without what depends on the clock, the name, the folder or the number of sittings."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def everything(run: Run) -> dict[str, Any]:
    """All that a run's directory says, times aside: weights, optimizer, generators, counters, metrics, record."""
    point = checkpoints.load_resume(run.refresh())
    tensors = {"last": point.last, "best": checkpoints.load_tensors(run.file("best.safetensors")), "resume": point.resume}
    return {
        **{kind: {n: t.numpy().tobytes() for n, t in group.items()} for kind, group in tensors.items()},
        "state": timeless(point.resume_state),
        "metrics": [timeless(e.model_dump()) for e in run.metrics()],
        "record": timeless(run.record.model_dump()),
    }


class Harness:
    """Starts, kills and resumes `minigpt train` in a folder of its own."""

    def __init__(self, folder: Path, arch: str, chance: random.Random) -> None:
        self.folder, self.arch, self.chance = folder, arch, chance
        self.text = folder / "text.txt"
        self.text.write_text("".join("abcdefghijk"[(i * i + i // 7) % 11] for i in range(2000)))
        self.kills = self.kills_before_a_save = self.fallbacks = self.finished = 0
        self.duration_s = 1.0

    def run(self, name: str) -> Run:
        return Run(self.folder / "runs" / name)

    def process(self, arguments: list[str]) -> int:
        """Fork a process that is `minigpt` with these arguments; its id."""
        if child := os.fork():
            return child
        os.environ["MINIGPT_DATA_DIR"] = str(self.folder / "data")
        log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 70
        try:
            code = cli.run([*arguments, "--runs-dir", str(self.folder / "runs")])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def train(self, name: str, resume: bool, kill_after_s: float | None) -> int | None:
        """One sitting; its exit code, or None if it was killed."""
        begin = ["--resume", name] if resume else [str(self.text), "--name", name, *MODEL[self.arch], *PLAN]
        child, started = self.process(["train", *begin]), time.monotonic()
        while kill_after_s is not None and time.monotonic() - started < kill_after_s:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self._checked(os.waitstatus_to_exitcode(status))
                break
            time.sleep(0.0005)
        else:
            if kill_after_s is not None:
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            return None if os.WIFSIGNALED(status) else self._checked(os.waitstatus_to_exitcode(status))
        if not resume:
            self.duration_s = min(self.duration_s, time.monotonic() - started)  # so that kills do not come too late
        return 0

    def _checked(self, code: int) -> int:
        if code:
            sys.exit(f"minigpt train exited with {code}: {(self.folder / 'log.txt').read_text()}")
        return code

    def saved_step(self, name: str) -> int:
        """The step of the newest loadable save; -1 where nothing was ever saved."""
        try:
            point = checkpoints.load_resume(self.run(name))
        except RunDamaged as error:
            if "has not saved a checkpoint yet" in str(error) or "never saved" in str(error):
                return -1
            raise
        self.fallbacks += bool(point.notices)
        return int(point.resume_state["step"])

    def killed_run(self, name: str, rounds: int) -> None:
        """Train `name` to its end through kills at random moments, `rounds` in all."""
        seen, resume = -1, False
        while True:
            limit = None if self.kills >= rounds else self.chance.uniform(0, 1.5 * self.duration_s)
            if self.train(name, resume, limit) is not None:
                self.finished += 1
                return
            self.kills += 1
            step = self.saved_step(name)
            if step < seen:
                sys.exit(f"kill {self.kills}: the save of step {seen} is lost, step {step} is what is left")
            seen, resume = step, step >= 0
            if not resume:
                self.kills_before_a_save += 1
                shutil.rmtree(self.run(name).dir, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arch", choices=MODEL, default="modern")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    in_memory = Path("/dev/shm")  # a killed process loses nothing that it wrote, so the disk need not be waited for
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder:
        harness = Harness(Path(folder), options.arch, random.Random(options.seed))
        for name in ("warm-up", "whole"):
            started = time.monotonic()
            harness.train(name, resume=False, kill_after_s=None)
            harness.duration_s = time.monotonic() - started
        expected, differences = everything(harness.run("whole")), []
        while harness.kills < options.rounds:
            name = f"parts-{harness.finished}"
            if harness.finished % 3 == 0:
                shutil.rmtree(Path(folder) / "data", ignore_errors=True)  # so that preparing the data is killed too
            harness.killed_run(name, options.rounds)
            found = everything(harness.run(name))
            differences += [f"{name}: {part}" for part in expected if found[part] != expected[part]]
            leftovers = [p.name for p in harness.run(name).dir.rglob("*.tmp")]
            differences += [f"{name}: {leftover} left behind" for leftover in leftovers]
            shutil.rmtree(harness.run(name).dir)
    print(
        json.dumps(
            {
                "rounds": harness.kills,
                "runs_finished": harness.finished,
                "kills_before_the_first_save": harness.kills_before_a_save,
                "fallbacks_to_the_save_before": harness.fallbacks,
                "differences": differences,
                "arch": options.arch,
                "uninterrupted_s": round(harness.duration_s, 2),
                "elapsed_s": round(time.monotonic() - begin, 1),
            }
        )
    )
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
