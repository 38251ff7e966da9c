"""Tests of recipes: several seeds of each, over the characters of one text. NumPy only.

A difference between two recipes has two uncertainties: another seed gives other weights, and another text of the same kind gives other
losses. Seeds: Welch's t on the seeds' scores. Text: block bootstrap of the difference between the groups' mean nats. Both are drawn and
added, so the interval holds for new seeds on new text. One seed each says nothing about recipes, only about those weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minigpt_cli.evaluation import statistics
from minigpt_cli.evaluation.statistics import Estimate, Floats, student_975

LOOKS = (3, 5, 8, 12, 16)
"""Numbers of seeds at which --seeds auto looks at the verdict. Looking until a difference is significant finds one in equal recipes far
more often than in 5 % of cases; with every p-value multiplied by the number of looks (Bonferroni), all of them together stay below."""

_POWER_80 = 0.8416  # normal quantile of 80 % power
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
    """What is needed to confirm a difference of the size that was seen, with a power of 80 %."""

    further_seeds: int | None  # for each group; 0: confirmed already; None: no number of seeds would be enough on this text
    text_factor: float | None  # where seeds alone are not enough: how many times as much text is needed at least


def group_of(scores: Sequence[float]) -> Group:
    """Mean, standard deviation and standard error of the seeds' scores."""
    n, mean = len(scores), math.fsum(scores) / len(scores)
    if n < 2:
        return Group(mean, None, None, n)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in scores) / (n - 1))
    return Group(mean, std, std / math.sqrt(n), n)


@dataclass(frozen=True)
class GroupedTest:
    """A difference between recipes, with the part of its uncertainty that more seeds do not reduce."""

    difference: Estimate
    by_text: float  # standard error from the choice of text


def grouped_test(a: Sequence[Floats], b: Sequence[Floats], *, resamples: int = statistics.RESAMPLES, seed: int = 0) -> GroupedTest:
    """The difference a - b of two recipes from the character nats of their seeds, each (n_chars,).

    Raises ValueError for fewer than two seeds.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a recipe needs at least two seeds")
    differences = np.mean(np.stack(a), axis=0) - np.mean(np.stack(b), axis=0)
    block = statistics.block_length(differences)
    moved_by_text = statistics.deviations(differences, block, resamples, seed)
    by_seeds, freedom = _welch([float(x.mean()) for x in a], [float(x.mean()) for x in b])
    moved_by_seeds = by_seeds * np.random.default_rng(seed + 1).standard_t(freedom, resamples)
    found = statistics.from_deviations(float(differences.mean()), moved_by_text + moved_by_seeds, block)
    by_text = float(moved_by_text.std())
    return GroupedTest(replace(found, std_error=math.hypot(by_seeds, by_text)), by_text)


def grouped_interval(seeds: Sequence[Floats]) -> tuple[float, float]:
    """95 % interval of a recipe's mean score, over new seeds and new text, from the character nats of two seeds or more."""
    mean = np.mean(np.stack(seeds), axis=0)
    group = group_of([float(x.mean()) for x in seeds])
    by_text = statistics.deviations(mean, statistics.block_length(mean))
    by_seed = (group.std_error or 0.0) * np.random.default_rng(1).standard_t(group.n - 1, len(by_text))
    found = statistics.from_deviations(float(mean.mean()), by_text + by_seed, 1)
    return found.low, found.high


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Standard error of the difference of means, and its degrees of freedom (Welch & Satterthwaite)."""
    variances = [group_of(x).std or 0.0 for x in (a, b)]
    parts = [std**2 / len(x) for std, x in zip(variances, (a, b), strict=True)]
    total = sum(parts)
    if total == 0:
        return 0.0, 1.0
    return math.sqrt(total), total**2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))


def outlook(found: GroupedTest, a: Group, b: Group) -> Outlook:
    """How many more seeds of each would confirm a difference as large as this one, given the spread over seeds and over text."""
    if found.difference.low > 0 or found.difference.high < 0:
        return Outlook(0, None)
    if a.std is None or b.std is None or found.difference.mean == 0:
        return Outlook(None, None)
    size = abs(found.difference.mean)
    for more in range(1, MOST_SEEDS + 1):
        n_a, n_b = a.n + more, b.n + more
        error = math.sqrt(a.std**2 / n_a + b.std**2 / n_b + found.by_text**2)
        if size >= (student_975(n_a + n_b - 2) + _POWER_80) * error:
            return Outlook(more, None)
    needed = size / (student_975(math.inf) + _POWER_80)
    return Outlook(None, (found.by_text / needed) ** 2 if found.by_text > needed else None)
