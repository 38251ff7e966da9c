"""What several commands at once cost each other: the time that each takes beside others, over the time of one alone.

    python tests/benchmarks/side_by_side.py TEXT [--rounds 3] [--steps 60] [--spins none,6000,…]

Each round runs one training, then two side by side, then four (likewise scoring and writing of a finished run) for every spin count in
turn, so that a busy machine slows all alike. Fair sharing of cores gives 2 and 4. `none` is libgomp's own default: threads that wait for
each other spin for milliseconds, on a core that another process needs. Prints JSON: medians over rounds, in seconds and as ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MINIGPT = [sys.executable, "-m", "minigpt_cli"]


def commands(text: Path, steps: int) -> dict[str, list[str]]:
    return {
        "train": ["train", str(text), "--max-steps", str(steps), "--eval-every", str(steps), "--json", "--name"],
        "eval": ["eval", "finished", "--fresh", "--json"],
        "generate": ["generate", "finished", "--max-new-tokens", "3000", "--seed", "1"],
    }


def together(command: list[str], count: int, number: int, spins: str) -> float:
    """Seconds from the common start of `count` equal commands to the end of the last."""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    environment["GOMP_SPINCOUNT"] = {"none": "300000"}.get(spins, spins)  # libgomp's own where cores are not oversubscribed
    if spins == "as it is":
        del environment["GOMP_SPINCOUNT"]
    begin = time.perf_counter()
    processes = []
    for i in range(count):
        line = [*MINIGPT, *command, *([f"r{number}-{count}-{i}"] if command[-1] == "--name" else [])]
        processes.append(subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {said}")
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--spins", default="as it is,none")
    parser.add_argument("--only", default="train,eval,generate")
    parser.add_argument("--counts", default="1,2,4")
    options = parser.parse_args()
    text = options.text.resolve()
    counts = [int(n) for n in options.counts.split(",")]
    number, found = 0, {}
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"MINIGPT_RUNS_DIR": f"{home}/runs", "MINIGPT_DATA_DIR": f"{home}/data"}
        subprocess.run(
            [*MINIGPT, "train", str(text), "--max-steps", "20", "--name", "finished", "--json"], check=True, stdout=subprocess.DEVNULL
        )
        for _ in range(options.rounds):
            for spins in options.spins.split(","):
                for name in options.only.split(","):
                    for count in counts:
                        number += 1
                        seconds = together(commands(text, options.steps)[name], count, number, spins)
                        print(f"{name}, {spins} spins, {count} at once: {seconds:.1f} s", file=sys.stderr, flush=True)
                        found.setdefault(name, {}).setdefault(spins, {}).setdefault(count, []).append(seconds)
    print(json.dumps({name: {spins: summary(rows) for spins, rows in by.items()} for name, by in found.items()}, indent=1))


def summary(rows: dict[int, list[float]]) -> dict[str, Any]:
    medians = {count: statistics.median(seconds) for count, seconds in rows.items()}
    alone = medians[min(medians)]
    return {"seconds": {n: round(s, 2) for n, s in medians.items()}, "times alone": {n: round(s / alone, 2) for n, s in medians.items()}}


if __name__ == "__main__":
    main()
