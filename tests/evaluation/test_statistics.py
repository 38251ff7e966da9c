"""Intervals cover and tests keep their level; on correlated losses the i.i.d. bootstrap does neither. Larger: benchmarks/calibration.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.evaluation.statistics import (
    block_length,
    holm,
    improvement_noise,
    mean_curve,
    mean_interval,
    paired_test,
    quick_p_values,
    student_975,
)

N = 20_000


def losses(rng: np.random.Generator, n: int = N, runs: int = 1) -> np.ndarray:
    """Losses of mean 0 like a model's: noise from character to character and a drift over about a hundred of them, (runs, n)."""
    kernel = np.exp(-np.arange(600) / 100.0)
    slow = np.fft.irfft(np.fft.rfft(rng.standard_normal((runs, n))) * np.fft.rfft(kernel / np.linalg.norm(kernel), n), n)
    return rng.standard_normal((runs, n)) + 0.4 * slow


def test_intervals_of_correlated_losses_cover_and_iid_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    series = losses(rng, runs=300)
    block = [mean_interval(x, resamples=500, seed=i) for i, x in enumerate(series)]
    iid = [mean_interval(x, block=1, resamples=300, seed=i) for i, x in enumerate(series[:100])]
    assert 0.92 <= np.mean([i.low <= 0 <= i.high for i in block]) <= 0.985
    assert np.mean([i.low <= 0 <= i.high for i in iid]) < 0.6


def test_equal_models_are_rarely_called_different() -> None:
    rng = np.random.default_rng(1)
    text = losses(rng, runs=200) * 3  # hard and easy stretches that both models share
    a, b = (text + 0.5 * losses(rng, runs=200) for _ in range(2))
    found = [paired_test(x, y, resamples=500, seed=i) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    assert np.mean([test.p_value < 0.05 for test in found]) <= 0.085
    assert all((test.p_value < 0.05) == (not test.low <= 0 <= test.high) or 0.04 < test.p_value < 0.06 for test in found)


def test_a_difference_is_found_with_the_power_its_interval_promises() -> None:
    rng = np.random.default_rng(2)
    difference = losses(rng, runs=150)
    error = float(np.std(losses(rng, runs=400).mean(axis=1)))
    found = np.mean([paired_test(x + 3 * error, np.zeros(N), resamples=500, seed=i).p_value < 0.05 for i, x in enumerate(difference)])
    assert found == pytest.approx(0.851, abs=0.09)  # P(|z + 3| > 1.96)


def test_pairing_removes_the_noise_that_both_share() -> None:
    rng = np.random.default_rng(3)
    text = 5 * losses(rng)[0]
    a, b = text + 0.1 * losses(rng)[0], text + 0.1 * losses(rng)[0]
    width = mean_interval(a)
    assert paired_test(a, b).std_error < 0.1 * width.std_error


def test_quick_p_values_agree_with_the_bootstrap() -> None:
    rng = np.random.default_rng(4)
    series = losses(rng, n=4000, runs=40) + rng.normal(0, 0.12, (40, 1))
    quick = quick_p_values(series)
    slow = np.array([paired_test(x, np.zeros(4000)).p_value for x in series])
    assert np.mean((quick < 0.05) == (slow < 0.05)) >= 0.9
    assert np.abs(quick - slow).mean() < 0.06


def test_identical_models_have_no_difference() -> None:
    x = losses(np.random.default_rng(5))[0]
    found = paired_test(x, x)
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert quick_p_values(np.zeros((3, 50))).tolist() == [1, 1, 1]


def test_blocks_reach_beyond_the_correlation() -> None:
    rng = np.random.default_rng(6)
    short, long = rng.standard_normal(N), losses(rng)[0]
    assert block_length(short) == N // 50
    assert block_length(long) > 500


@pytest.mark.parametrize("n", [1, 2, 3, 17, 200])
def test_short_texts_have_intervals(n: int) -> None:
    x = np.random.default_rng(0).exponential(size=n)
    found = mean_interval(x)
    assert found.low <= found.mean <= found.high
    assert 1 <= found.block <= n


def test_constant_losses_have_an_empty_interval() -> None:
    found = mean_interval(np.full(500, 1.25))
    assert found.low == pytest.approx(1.25)
    assert found.high == pytest.approx(1.25)


def test_results_are_the_same_each_time() -> None:
    x = losses(np.random.default_rng(7))[0]
    assert mean_interval(x) == mean_interval(x)


def test_students_quantile_equals_the_table() -> None:
    for freedom, value in ((1, 12.706), (4, 2.776), (7, 2.365), (12, 2.179), (30, 2.042), (1e9, 1.960)):
        assert student_975(freedom) == pytest.approx(value, abs=0.006)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_holm_adjusts_upwards_in_order_and_by_hand(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    by_hand = 0.0
    for rank, i in enumerate(order):
        by_hand = max(by_hand, min(1.0, p_values[i] * (len(p_values) - rank)))
        assert adjusted[i] == pytest.approx(by_hand)
        assert adjusted[i] >= min(1.0, p_values[i])


def test_chance_rarely_counts_as_improvement() -> None:
    rng = np.random.default_rng(0)
    text = np.repeat(rng.normal(2, 1, 200), 20)
    counted = 0
    for _ in range(200):
        a, b = (text + 0.1 * rng.standard_normal(4000) for _ in range(2))
        counted += a.mean() - b.mean() > improvement_noise(a, b)
    assert counted / 200 <= 0.09


def test_the_noise_of_a_difference_is_smaller_than_the_interval_of_one_evaluation() -> None:
    rng = np.random.default_rng(1)
    text = np.repeat(rng.normal(2, 1, 200), 20)
    a, b = text + 0.1 * rng.standard_normal(4000), text - 0.02 + 0.1 * rng.standard_normal(4000)
    interval = mean_interval(a)
    assert improvement_noise(a, b) < 0.2 * (interval.high - interval.low) / 2
    assert a.mean() - b.mean() > improvement_noise(a, b)


def test_equal_evaluations_have_no_noise_and_broken_ones_infinite() -> None:
    assert improvement_noise(np.ones(50), np.ones(50)) == pytest.approx(0)
    assert improvement_noise(np.ones(50), np.full(50, np.nan)) == np.inf


def test_a_mean_of_curves_is_taken_where_all_of_them_are() -> None:
    assert mean_curve([([0, 10, 20, 30], [4, 3, 2, 1]), ([5, 25], [5, 1])]) == ([10, 20], [3.5, 2.0], ([3.0, 2.0], [4.0, 2.0]))
