"""Ctrl-C at random moments of every command, from its first own line to its last: it ends with 130, or was done already.

    python tests/benchmarks/interrupts.py --moments 1000 [--seed 0] [--only tokenize "runs plot"]

Every command line is a new process, since a third of its life is spent importing libraries. A quarter of them get several signals. Never
a traceback, never two errors, never killed by the signal. Prints one JSON document; exit code 1 if there are findings.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import tiny
from harness.results import complaint

START = "import os, sys; from minigpt_cli.__main__ import main; os.write(int(sys.argv.pop(1)), b'.'); main()"
COMMANDS = (
    "--version",
    "--version -v",
    "train --help",
    "runs leaderboard",
    "runs list --json",
    "runs plot modern",
    "runs plot modern --html NEW.html",
    "runs plot modern --out NEW.png",
    "runs verify modern",
    "runs export classic --out NEW",
    "compare modern classic",
    "eval modern --json",
    "generate modern --max-new-tokens 200",
    "tokenize text.txt --out NEW",
    "tokenize text.txt --tokenizer bpe --vocab-size 400 --out NEW",
    "train text.txt --arch bigram --block-size 8 --max-steps 20 --device cpu --precision fp32 --name NEW",
)


class Interrupter:
    """Interrupts commands in a folder, and keeps count of how they end."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance = folder, Random(seed)
        self.outcomes, self.findings = Counter[str](), Counter[str]()
        self._takes_s: dict[str, float] = {}
        (folder / "text.txt").write_text(tiny.text(20_000))
        for arch in ("modern", "classic"):
            self.one(f"train text.txt --name {arch} {' '.join(tiny.training(4, 2))} --arch {arch}")

    def one(self, command: str) -> None:
        """Run a command for the first time undisturbed, then with signals within the shortest time that it was seen to take."""
        ready, told = os.pipe()
        arguments = command.replace("NEW", f"new{sum(self.outcomes.values())}").split()
        environment = {**os.environ, "MINIGPT_RUNS_DIR": "runs", "MINIGPT_DATA_DIR": "data", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(told), *arguments],
            cwd=self.folder, env=environment, pass_fds=[told], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        start, takes_s = time.monotonic(), self._takes_s.get(command)
        for moment in sorted(self.chance.uniform(0, takes_s) for _ in range(self.chance.choice([1, 1, 1, 3]))) if takes_s else []:
            time.sleep(max(0.0, start + moment - time.monotonic()))
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=600)
        self.outcomes[f"{command.split(' -')[0]} {process.returncode}"] += 1
        if process.returncode == 0:
            self._takes_s[command] = min(time.monotonic() - start, takes_s or 600)
        wrong = complaint(process.returncode, said, signalled=True)
        if wrong or process.returncode not in (0, 130):
            self.findings[f"{command}: {wrong or said[-600:]}"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the commands to interrupt; default: all")
    options = parser.parse_args()
    chosen = [command for command in COMMANDS if command.startswith(tuple(options.only))]
    for number in (signal.SIGTERM, signal.SIGINT):  # either way the figures so far are printed; nohup's children would ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    with tiny.folder() as folder:
        interrupter, begin = Interrupter(folder, options.seed), time.monotonic()
        with suppress(KeyboardInterrupt):
            for _ in range(options.moments):
                interrupter.one(interrupter.chance.choice(chosen))
    figures = {"outcomes": dict(sorted(interrupter.outcomes.items())), "elapsed_s": round(time.monotonic() - begin, 1)}
    print(json.dumps({"commands": interrupter.outcomes.total(), **figures, "findings": dict(interrupter.findings)}))
    sys.exit(1 if interrupter.findings else 0)


if __name__ == "__main__":
    main()
