"""What the plain `minigpt train` reaches in three minutes: whole-split nats per character over seeds.

For a reader with a text and a laptop.

    python tests/benchmarks/three_minutes.py --text FILE [--seeds 3] [-- FLAG ...]

Each seed is the command as typed, nothing but the text and the seed. Prints JSON: every run's score, steps and seconds (training,
evaluations included), the mean and its 95 % interval over seeds (Student's t).
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

STUDENT_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="further flags of minigpt train, after --")
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"MINIGPT_RUNS_DIR": f"{scratch}/runs", "MINIGPT_DATA_DIR": f"{scratch}/data"}
        for seed in range(1, arguments.seeds + 1):
            command = [
                sys.executable,
                "-m",
                "minigpt_cli",
                "train",
                str(arguments.text.resolve()),
                "--seed",
                str(seed),
                "--json",
                *arguments.flags,
            ]
            begun = time.perf_counter()
            out = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True, check=True).stdout
            wall_s = time.perf_counter() - begun
            events = [json.loads(line) for line in out.splitlines()]
            stopped = next(e for e in events if e["event"] == "stopped")
            started = next(e for e in events if e["event"] == "started")
            runs.append(
                {
                    "seed": seed,
                    "nats_per_char": stopped["best_nats_per_char"],
                    "best_step": stopped["best_step"],
                    "max_steps": started["max_steps"],
                    "training_s": stopped["elapsed_s"],
                    "wall_s": wall_s,
                    "n_params": started["n_params"],
                }
            )
            print(json.dumps(runs[-1]), file=sys.stderr)
    scores = [run["nats_per_char"] for run in runs]
    half = STUDENT_975.get(len(scores) - 1, 2.0) * statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None
    print(
        json.dumps(
            {"mean_nats_per_char": statistics.mean(scores), "half_width_95": half, "nanogpt_readme_a100": 1.4697, "runs": runs}, indent=2
        )
    )


if __name__ == "__main__":
    main()
