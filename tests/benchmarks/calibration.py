"""Do intervals cover, and are equal models told apart no oftener than they may be? Simulated losses, and the losses of real runs.

    python tests/benchmarks/calibration.py [--rounds 1000] [--chars 100000] [--runs-dir DIR --run RUN --other RUN]
    python tests/benchmarks/calibration.py --rounds 600 --runs-dir DIR --group GROUP

Simulated: series of known mean with the correlation of different kinds of text, `rounds` each: coverage of the block bootstrap and
of the i.i.d. one; false positives of two equal models; power at differences of 2, 3 and 4 standard errors beside the power that a
normal test would have; false positives of recipes that differ only by their seeds. Real (if runs are named): the per-character
differences of two runs, whose signs are flipped block by block, so that neither is better, and tested `rounds` times. A group of 20 or
more seeds (train --seeds 24 --name GROUP) is cut at random into sides of 2, 3 and 5 seeds, which are one recipe. JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from minigpt_cli.evaluation.seeds import grouped_test
from minigpt_cli.evaluation.statistics import RESAMPLES, block_length, mean_interval, paired_test

Series = Callable[[np.random.Generator, int], np.ndarray]


def drift(rng: np.random.Generator, n: int, reach: float) -> np.ndarray:
    """Noise of variance 1 whose correlation falls to 1/e over `reach` characters."""
    size = 1 << (n + int(12 * reach)).bit_length()
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * decay(reach, size), size)[:n]


@lru_cache(8)
def decay(reach: float, size: int) -> np.ndarray:
    """The filter behind `drift`, in frequencies."""
    kernel = np.exp(-np.arange(int(12 * reach)) / reach)
    return np.fft.rfft(kernel / np.linalg.norm(kernel), size)


PROCESSES: dict[str, Series] = {
    "independent": lambda rng, n: rng.standard_normal(n),
    "words (10 characters)": lambda rng, n: drift(rng, n, 10),
    "noise and speakers (300)": lambda rng, n: rng.standard_normal(n) + 0.17 * drift(rng, n, 300),
    "noise and topics (1000)": lambda rng, n: rng.standard_normal(n) + 0.17 * drift(rng, n, 1000),
    "skewed, speakers": lambda rng, n: np.exp(0.8 * drift(rng, n, 3)) - math.exp(0.32) + 0.3 * drift(rng, n, 300),
    "weak, 200 and 1500": lambda rng, n: rng.standard_normal(n) + 0.06 * drift(rng, n, 200) + 0.05 * drift(rng, n, 1500),
}


def share(hits: int, rounds: int) -> dict[str, float]:
    """A proportion and its standard error, in percent."""
    p = hits / rounds
    return {"percent": round(100 * p, 2), "se": round(100 * math.sqrt(p * (1 - p) / rounds), 2)}


def coverage(rounds: int, chars: int) -> dict[str, object]:
    out: dict[str, object] = {}
    for name, make in PROCESSES.items():
        rng = np.random.default_rng(1)
        block = iid = 0
        lengths = []
        for i in range(rounds):
            series = make(rng, chars)
            found = mean_interval(series, resamples=1000, seed=i)
            naive = mean_interval(series[:20_000], block=1, resamples=200, seed=i)
            block += found.low <= 0 <= found.high
            iid += naive.low <= 0 <= naive.high
            lengths.append(found.block)
        out[name] = {"block_bootstrap": share(block, rounds), "iid_bootstrap": share(iid, rounds), "median_block": int(np.median(lengths))}
    return out


def false_positives(rounds: int, chars: int) -> dict[str, object]:
    out = {}
    for name, make in PROCESSES.items():
        rng = np.random.default_rng(2)
        hits = 0
        for i in range(rounds):
            text = 2 * make(rng, chars)  # what both models find hard or easy
            hits += paired_test(text + make(rng, chars), text + make(rng, chars), resamples=1000, seed=i).p_value < 0.05
        out[name] = share(hits, rounds)
    return out


def power(rounds: int, chars: int) -> dict[str, object]:
    make = PROCESSES["noise and speakers (300)"]
    rng = np.random.default_rng(3)
    error = float(np.std([make(rng, chars).mean() for _ in range(1000)]))
    out = {}
    for size in (2, 3, 4):
        found = [paired_test(make(rng, chars) + size * error, np.zeros(chars), resamples=1000, seed=i) for i in range(rounds)]
        hits = sum(test.p_value < 0.05 for test in found)
        ideal = 0.5 * (math.erfc((1.96 - size) / math.sqrt(2)) + math.erfc((1.96 + size) / math.sqrt(2)))
        out[f"{size} standard errors"] = {**share(hits, rounds), "normal_test_percent": round(100 * ideal, 1)}
    return out


def recipes(rounds: int, chars: int) -> dict[str, object]:
    """Two groups of seeds of one recipe; and what pairing one seed each would have said."""
    out = {}
    chars = min(chars, 20_000)
    for n_seeds in (2, 3, 5):
        rng = np.random.default_rng(4)
        grouped = single = 0
        for i in range(rounds):
            text = drift(rng, chars, 300)
            groups = [[text + 0.3 * rng.standard_normal(chars) + 0.01 * rng.standard_normal() for _ in range(n_seeds)] for _ in range(2)]
            found = grouped_test(*groups, resamples=1000, seed=i).difference
            grouped += found.p_value < 0.05
            single += paired_test(groups[0][0], groups[1][0], resamples=500, seed=i).p_value < 0.05
        out[f"{n_seeds} seeds each"] = {"hierarchical": share(grouped, rounds), "one_seed_each_taken_for_recipes": share(single, rounds)}
    return out


def real(rounds: int, runs_dir: Path, names: list[str]) -> dict[str, object]:
    from minigpt_cli.evaluation.evaluate_run import evaluate_run
    from minigpt_cli.runstore.store import RunStore

    a, b = (evaluate_run(RunStore(runs_dir).find(name)).score.char_nats for name in names)
    difference = a - b - (a - b).mean()
    block = max(block_length(difference), 2000)
    rng = np.random.default_rng(5)
    hits = 0
    pieces = [difference[i : i + block] for i in range(0, len(difference), block)]
    for i in range(rounds):
        flipped = np.concatenate([piece * sign for piece, sign in zip(pieces, rng.choice([-1, 1], len(pieces)), strict=True)])
        hits += paired_test(flipped, np.zeros(len(flipped)), resamples=1000, seed=i).p_value < 0.05
    return {"runs": names, "flipped_block": block, "false_positives": share(hits, rounds), "verdict": vars(replace(paired_test(a, b)))}


def same_recipe(rounds: int, runs_dir: Path, group: str) -> dict[str, object]:
    """Real seeds of one recipe, drawn into disjoint sides: how many pairs, or fours with Holm's correction, are called different."""
    from minigpt_cli.evaluation.comparison import Side, compare_pairs
    from minigpt_cli.evaluation.evaluate_run import evaluate_run
    from minigpt_cli.evaluation.recipes import by_recipe, observations
    from minigpt_cli.runstore.store import RunStore

    runs, _ = observations([run for run in RunStore(runs_dir).runs() if run.record.group == group])
    if len(by_recipe(runs)) != 1 or len(runs) < 20:
        raise SystemExit(f"group {group!r} has {len(runs)} seeds of {len(by_recipe(runs))} recipes: 20 or more of one are needed")
    scores = [evaluate_run(run).score for run in runs]
    rng = np.random.default_rng(6)

    def called_different(sides: int, seeds: int) -> bool:
        drawn = rng.permutation(len(scores))[: sides * seeds].reshape(sides, seeds)
        found = compare_pairs([Side(str(i), tuple(scores[j] for j in side)) for i, side in enumerate(drawn)])
        return any(pair.verdict != "indistinguishable" for pair in found)

    return {
        "seeds": len(scores),
        "sd_over_seeds": float(np.std([score.nats_per_char for score in scores], ddof=1)),
        **{f"two sides of {n} seeds": share(sum(called_different(2, n) for _ in range(rounds)), rounds) for n in (2, 3, 5)},
        "four sides of 3 seeds, any pair": share(sum(called_different(4, 3) for _ in range(rounds // 3)), rounds // 3),
        "one seed taken for a recipe": share(sum(called_different(2, 1) for _ in range(rounds)), rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--chars", type=int, default=100_000)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--run")
    parser.add_argument("--other")
    parser.add_argument("--group")
    asked = parser.parse_args()
    if asked.group:
        print(json.dumps({"rounds": asked.rounds, **same_recipe(asked.rounds, asked.runs_dir, asked.group)}, indent=2))
        return
    document: dict[str, object] = {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "rounds": asked.rounds,
        "chars": asked.chars,
        "resamples_in_use": RESAMPLES,
        "coverage_of_95_percent_intervals": coverage(asked.rounds, asked.chars),
        "equal_models_called_different": false_positives(asked.rounds, asked.chars),
        "power": power(asked.rounds, asked.chars),
        "equal_recipes_called_different": recipes(asked.rounds, asked.chars),
    }
    if asked.run and asked.other:
        document["real_runs_with_signs_flipped"] = real(asked.rounds, asked.runs_dir, [asked.run, asked.other])
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
