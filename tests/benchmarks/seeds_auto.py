"""How often does --seeds auto call equal recipes different? Simulated recipes, and real seeds of one recipe; beside it naive peeking.

    python tests/benchmarks/seeds_auto.py [--rounds 1000] [--runs-dir DIR --group GROUP --real-rounds 100]

Every round has two sides of one recipe that grow to 3, 5, 8, 12 and 16 seeds, as long as no difference is found. `auto` asks for p below
0.05 after multiplying by the number of looks, as `train --seeds auto` does; `naive` takes the first p below 0.05. Also the power, and the
seeds that are used, where one side is better by one, two or three standard deviations of a seed. Real: the seeds of GROUP (40 or more of
one recipe: train --seeds 48 --name GROUP) are drawn into two sides without repetition. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from calibration import drift, share

from minigpt_cli.evaluation.seeds import LOOKS, grouped_test

CHARS = 4000
SEED_SD = 0.01  # nats per character


def first_different(a: list[np.ndarray], b: list[np.ndarray], factor: int, seed: int) -> int | None:
    """The seeds of each side at the first look that tells them apart; None if no look does."""
    for n in LOOKS:
        test = grouped_test(a[:n], b[:n], resamples=2000, seed=seed).difference
        if factor * test.p_value < 0.05 and not test.low <= 0 <= test.high:
            return n
    return None


def simulated(rounds: int, better_by: float) -> dict[str, object]:
    rng = np.random.default_rng(7)
    auto, naive = [], []
    for i in range(rounds):
        text = drift(rng, CHARS, 300)
        sides = [
            [text + 0.3 * rng.standard_normal(CHARS) + shift * SEED_SD + SEED_SD * rng.standard_normal() for _ in range(LOOKS[-1])]
            for shift in (0.0, better_by)
        ]
        auto.append(first_different(*sides, factor=len(LOOKS), seed=i))
        naive.append(first_different(*sides, factor=1, seed=i))
    return summary(auto, naive, rounds)


def summary(auto: list[int | None], naive: list[int | None], rounds: int) -> dict[str, object]:
    seeds = float(np.mean([LOOKS[-1] if n is None else n for n in auto]))
    return {
        "auto": share(sum(n is not None for n in auto), rounds),
        "naive peeking": share(sum(n is not None for n in naive), rounds),
        "mean seeds of each side": seeds,
    }


def real(rounds: int, runs_dir: Path, group: str) -> dict[str, object]:
    from minigpt_cli.evaluation.evaluate_run import evaluate_run
    from minigpt_cli.runstore.store import RunStore

    nats = [evaluate_run(run).score.char_nats for run in RunStore(runs_dir).runs() if run.record.group == group]
    if len(nats) < 2 * LOOKS[-1]:
        raise SystemExit(f"group {group!r} has {len(nats)} runs: {2 * LOOKS[-1]} or more seeds of one recipe are needed")
    rng = np.random.default_rng(8)
    auto, naive = [], []
    for i in range(rounds):
        drawn = [nats[j] for j in rng.permutation(len(nats))[: 2 * LOOKS[-1]]]
        sides = drawn[: LOOKS[-1]], drawn[LOOKS[-1] :]
        auto.append(first_different(*sides, factor=len(LOOKS), seed=i))
        naive.append(first_different(*sides, factor=1, seed=i))
    return {"seeds": len(nats), **summary(auto, naive, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--runs-dir", type=Path)
    parser.add_argument("--group")
    parser.add_argument("--real-rounds", type=int, default=100)
    arguments = parser.parse_args()
    out: dict[str, object] = {"equal recipes": simulated(arguments.rounds, 0.0)}
    for size in (1, 2, 3):
        out[f"better by {size} standard deviations of a seed"] = simulated(max(20, arguments.rounds // 10), size)
    if arguments.group:
        out["real seeds of one recipe"] = real(arguments.real_rounds, arguments.runs_dir, arguments.group)
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
