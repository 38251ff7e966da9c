"""Verdicts about recipes: several seeds of each, over the characters of one text. NumPy only.

A difference between two recipes is uncertain twice: another seed would give other weights, and another text of the kind
other losses. Seeds: Welch's t on the seeds' scores. Text: block bootstrap of the difference between the groups' mean
nats. Both are drawn and added up, so the interval speaks of new seeds on new text. One seed each says nothing about
recipes, only about those weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minigpt_cli.evaluation import statistics
from minigpt_cli.evaluation.statistics import Difference, Floats, student_975

_POWER_80 = 0.8416  # normal quantile: a real difference of this size is found four times out of five
MOST_SEEDS = 100


@dataclass(frozen=True)
class Group:
    """Scores of one recipe's seeds."""

    mean: float  # nats per character
    std: float | None  # over seeds; None for one seed
    std_error: float | None
    n: int


@dataclass(frozen=True)
class Outlook:
    """What it would take to settle a difference of the size that was seen, four times out of five."""

    further_seeds: int | None  # for each group; 0: settled already; None: no number of seeds would, on this text
    text_factor: float | None  # where seeds cannot settle it: how many times as much text would, with the seeds there are or many


def group_of(scores: Sequence[float]) -> Group:
    """Mean, standard deviation and standard error of the seeds' scores."""
    n, mean = len(scores), math.fsum(scores) / len(scores)
    if n < 2:
        return Group(mean, None, None, n)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in scores) / (n - 1))
    return Group(mean, std, std / math.sqrt(n), n)


def grouped_test(a: Sequence[Floats], b: Sequence[Floats], *, resamples: int = statistics.RESAMPLES, seed: int = 0) -> Difference:
    """The difference a - b of two recipes from the character nats of their seeds, each (n_chars,). Raises ValueError for fewer than two seeds."""
    if min(len(a), len(b)) < 2:
        raise ValueError("a recipe needs at least two seeds")
    difference = np.mean(np.stack(a), axis=0) - np.mean(np.stack(b), axis=0)
    block = statistics.block_length(difference)
    by_text = statistics.deviations(difference, block, resamples, seed)
    error, freedom = _welch([float(x.mean()) for x in a], [float(x.mean()) for x in b])
    by_seed = error * np.random.default_rng(seed + 1).standard_t(freedom, resamples) if error > 0 else np.zeros(resamples)
    return statistics.from_deviations(float(difference.mean()), by_text + by_seed, block)


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Standard error of the difference of means, and its degrees of freedom (Welch & Satterthwaite)."""
    variances = [group_of(x).std or 0.0 for x in (a, b)]
    parts = [std**2 / len(x) for std, x in zip(variances, (a, b), strict=True)]
    total = sum(parts)
    if total == 0:
        return 0.0, 1.0
    return math.sqrt(total), total**2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))


def outlook(found: Difference, a: Group, b: Group) -> Outlook:
    """How many more seeds of each would settle a difference as large as the one found, given the spread over seeds and over text."""
    if a.std is None or b.std is None or found.delta == 0:
        return Outlook(None, None)
    by_seeds = math.sqrt(a.std**2 / a.n + b.std**2 / b.n)
    by_text = math.sqrt(max(0.0, found.std_error**2 - by_seeds**2))
    if found.low > 0 or found.high < 0:
        return Outlook(0, None)
    for more in range(1, MOST_SEEDS + 1):
        n_a, n_b = a.n + more, b.n + more
        error = math.sqrt(a.std**2 / n_a + b.std**2 / n_b + by_text**2)
        if abs(found.delta) >= (student_975(n_a + n_b - 2) + _POWER_80) * error:
            return Outlook(more, None)
    needed = abs(found.delta) / (student_975(math.inf) + _POWER_80)
    return Outlook(None, (by_text / needed) ** 2 if by_text > needed else None)
