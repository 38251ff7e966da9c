"""Intervals and tests for means of correlated numbers: block bootstrap, paired test, Holm's correction. NumPy only.

The nats of neighbouring characters are correlated (a hard word, a speaker, a topic), so an i.i.d. bootstrap gives intervals that are far
too short. Resampling contiguous blocks that are longer than the correlation keeps it (circular block bootstrap: Politis & Romano 1992);
`block_length` says how long. Two corrections then bring simulated coverage to 95 %: a block bootstrap misses the correlation across block
borders, which a comparison with blocks of half the length shows ("lugsail": Vats & Flegal 2022), and few blocks need Student's quantile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 4000
_NORMAL_975 = 1.959964
_STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447)  # by degrees of freedom, from 1
_MIN_BLOCKS = 15  # with fewer blocks the spread of their means is only a guess
_MAX_BLOCKS = 50  # too long blocks do little harm (Student's quantile at 50 blocks: 5 % wider), too short ones much
_CELLS = 1 << 13  # correlation is measured over at most this many cells


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty; of a comparison, the mean of the differences a - b."""

    mean: float
    low: float  # 95 % interval
    high: float
    std_error: float
    p_value: float  # two-sided, of a mean of 0
    block: int  # length of the resampled blocks, in elements of the series


def block_length(series: npt.ArrayLike) -> int:
    """Length of the blocks to resample, in elements: twice the optimum for the correlation found at any scale.

    The optimum: Politis & White 2004, corrected by Patton, Politis & White 2009. It is computed for the series itself and
    for its means over cells of 4, 16, 64, ... elements, and the longest result is taken, because a weak but long correlation
    (a topic) is invisible from one character to the next and yet dominates the error of the mean.
    """
    values = np.asarray(series, dtype=np.float64)
    n = len(values)
    cell = max(1, n // _CELLS)
    values = cell_means(values, cell)
    best = 1
    while len(values) >= 200:
        best = max(best, 2 * cell * _politis_white(values))
        values, cell = cell_means(values, 4), cell * 4
    return max(1, min(max(best, n // _MAX_BLOCKS), n // _MIN_BLOCKS))


def cell_means(values: Floats, size: int) -> Floats:
    """Means over consecutive cells of `size` elements; a remainder is dropped."""
    whole = len(values) // size * size
    return np.asarray(values[:whole].reshape(-1, size).mean(axis=1), dtype=np.float64) if size > 1 else values


def _politis_white(values: Floats) -> int:
    """Optimal block for a circular bootstrap of the mean; 0 where no correlation is visible."""
    n = len(values)
    centred = values - values.mean()
    variance = float(centred @ centred) / n
    if variance <= 0:
        return 0
    run = max(5, int(np.sqrt(np.log10(n))))
    lags = min(n // 2, int(np.ceil(np.sqrt(n))) + run)
    size = 1 << (n + lags).bit_length()
    spectrum = np.fft.rfft(centred, size)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size)[: lags + 1] / n
    quiet = np.abs(covariance[1:] / variance) < 2 * np.sqrt(np.log10(n) / n)
    reach = next((lag for lag in range(len(quiet) - run) if quiet[lag : lag + run].all()), len(quiet) - run)
    if reach == 0:
        return 0
    span = min(2 * reach, lags)
    lag = np.arange(1, span + 1)
    taper = np.minimum(1.0, 2 * (1 - lag / span))  # flat-top window (Politis & Romano 1995)
    bias = 2 * float(np.sum(taper * lag * covariance[1 : span + 1]))
    spectral = variance + 2 * float(np.sum(taper * covariance[1 : span + 1]))
    if spectral <= 0:
        return 1
    length = (2 * bias * bias / (4 / 3 * spectral * spectral)) ** (1 / 3) * n ** (1 / 3)
    return max(1, int(np.ceil(min(length, 3 * np.sqrt(n), n / 3))))


def _block_means(values: Floats, block: int) -> Floats:
    """The mean of the block that starts at each element of the last axis, wrapping around at the end, (..., n)."""
    zero = np.zeros((*values.shape[:-1], 1))
    sums = np.cumsum(np.concatenate([zero, values, values[..., : block - 1]], axis=-1), axis=-1)
    return np.asarray((sums[..., block:] - sums[..., :-block])[..., : values.shape[-1]] / block)


def resampled_means(series: npt.ArrayLike, block: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means of `resamples` texts made of random blocks of `series`, (resamples,)."""
    values = np.asarray(series, dtype=np.float64)
    block = min(block, len(values))
    blocks = _block_means(values, block)
    count = max(1, round(len(values) / block))
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        means[start : start + rows] = blocks[rng.integers(0, len(values), (rows, count))].mean(axis=1)
    return means


def deviations(series: npt.ArrayLike, block: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means of resampled texts minus the mean, (resamples,), with both corrections; with `block` 1 the plain i.i.d. bootstrap."""
    values = np.asarray(series, dtype=np.float64)
    moved = resampled_means(values, block, resamples, seed) - values.mean()
    if block == 1:
        return np.asarray(moved)
    return np.asarray(moved * _widening(values, block))


def _widening(values: Floats, block: int) -> Floats:
    """The factor of both corrections, for each series along the last axis."""
    count = max(2.0, values.shape[-1] / block)
    spread = _block_means(values, block).var(axis=-1) * block
    at_half = _block_means(values, block // 2).var(axis=-1) * (block // 2)
    missed = np.maximum(1.0, 2 - at_half / np.where(spread > 0, spread, 1.0))
    return np.asarray(np.sqrt(missed * count / (count - 1)) * student_975(count / 2) / _NORMAL_975)


def student_975(freedom: float) -> float:
    """The 97.5 % quantile of Student's t (tabled up to 6 degrees of freedom, then Cornish & Fisher's series)."""
    if freedom < len(_STUDENT_975) + 1:
        return _STUDENT_975[max(1, int(freedom)) - 1]
    z = _NORMAL_975
    first = (z**3 + z) / 4 / freedom
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / freedom**3


def mean_interval(series: npt.ArrayLike, *, block: int | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of `series` with its 95 % block-bootstrap interval. Raises ValueError for an empty series."""
    values = np.asarray(series, dtype=np.float64)
    if not len(values):
        raise ValueError("no numbers to average")
    chosen = block_length(values) if block is None else block
    return from_deviations(float(values.mean()), deviations(values, chosen, resamples, seed), chosen)


def paired_test(a: npt.ArrayLike, b: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of a - b, element by element over the same text, with its interval and p-value."""
    return mean_interval(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), resamples=resamples, seed=seed)


def from_deviations(mean: float, moved: Floats, block: int) -> Estimate:
    """A mean with the interval and the two-sided p-value (never 0) that follow from its deviations by chance."""
    distance = np.abs(moved)
    half = float(np.quantile(distance, 0.95))  # symmetric, so that the interval excludes 0 exactly where p is below 0.05
    p_value = (1 + int(np.count_nonzero(distance >= abs(mean)))) / (len(moved) + 1)
    return Estimate(mean, mean - half, mean + half, float(moved.std()), p_value, block)


def improvement_noise(reference: npt.ArrayLike, current: npt.ArrayLike) -> float:
    """`--min-delta auto`: how far the mean of `current` must be below that of `reference` (nats of the same tokens) to be an improvement
    on new text too, with 95 % confidence. 0 where they are equal; infinite where either is not finite.

    Both evaluations are of the same text, so only the uncertainty of their difference counts, which is much smaller than that of each.
    """
    difference = np.asarray(reference, dtype=np.float64) - np.asarray(current, dtype=np.float64)
    if not len(difference) or not np.isfinite(difference).all():
        return float("inf")
    return max(0.0, float(np.quantile(deviations(difference, block_length(difference), 1000), 0.95)))


def quick_p_values(differences: Floats) -> Floats:
    """Two-sided p-values of the means of many series of differences, (runs, n) → (runs,): `paired_test` without resampling.

    The bootstrap's spread has a closed form, and a mean of many blocks is close to normal. All series use one block length: the longest
    that `block_length` gives for eight of them.
    """
    runs, n = differences.shape
    if not runs or not n:
        return np.ones(runs)
    block = max(2, max(block_length(differences[i]) for i in np.unique(np.linspace(0, runs - 1, 8).astype(int))))
    block = min(block, n)
    out = np.empty(runs)
    for start in range(0, runs, 64):
        rows = differences[start : start + 64]
        error = _block_means(rows, block).std(axis=-1) / np.sqrt(n / block) * (_widening(rows, block) if block > 1 else 1.0)
        z = np.abs(rows.mean(axis=-1)) / np.where(error > 0, error, np.inf)
        out[start : start + 64] = [math.erfc(float(x) / math.sqrt(2)) for x in z]
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): p-values that may each be compared with 0.05 although there are several."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def largest_windows(values: Floats, length: int, count: int, taken: Sequence[int] = ()) -> list[int]:
    """Where the `count` windows of `length` values begin that have the largest means above 0, largest first; none overlaps another or a
    window that begins in `taken`."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    means = sums[length:] - sums[:-length]
    found: list[int] = []
    for start in taken:
        means[max(0, start - length + 1) : start + length] = -np.inf
    while len(found) < count and means.max(initial=-np.inf) > 0:
        found.append(int(means.argmax()))
        means[max(0, found[-1] - length + 1) : found[-1] + length] = -np.inf
    return found


def mean_curve(
    curves: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[list[float], list[float], tuple[list[float], list[float]]]:
    """xs, mean, and lowest and highest y of curves given as (xs, ys), xs ascending, at those xs of the first that all of them reach."""
    low, high = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    at = [x for x in curves[0][0] if low <= x <= high]
    each = np.stack([np.interp(at, xs, ys) for xs, ys in curves])
    return at, each.mean(axis=0).tolist(), (each.min(axis=0).tolist(), each.max(axis=0).tolist())
