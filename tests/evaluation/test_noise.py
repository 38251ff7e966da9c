"""What counts as improvement: chance alone seldom does, a real gain does."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt_cli.evaluation.noise import improvement_noise
from minigpt_cli.evaluation.statistics import mean_interval


def test_chance_seldom_counts_as_improvement() -> None:
    rng = np.random.default_rng(0)
    text = np.repeat(rng.normal(2, 1, 200), 20)
    counted = 0
    for _ in range(200):
        a, b = (text + 0.1 * rng.standard_normal(4000) for _ in range(2))
        counted += a.mean() - b.mean() > improvement_noise(a, b)
    assert counted / 200 <= 0.09


def test_pairing_makes_it_finer_than_the_interval_of_one_evaluation() -> None:
    rng = np.random.default_rng(1)
    text = np.repeat(rng.normal(2, 1, 200), 20)
    a, b = text + 0.1 * rng.standard_normal(4000), text - 0.02 + 0.1 * rng.standard_normal(4000)
    interval = mean_interval(a)
    assert improvement_noise(a, b) < 0.2 * (interval.high - interval.low) / 2
    assert a.mean() - b.mean() > improvement_noise(a, b)


def test_equal_and_broken_evaluations() -> None:
    assert improvement_noise(np.ones(50), np.ones(50)) == pytest.approx(0)
    assert improvement_noise(np.ones(50), np.full(50, np.nan)) == np.inf
