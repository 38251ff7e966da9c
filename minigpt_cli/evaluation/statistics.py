"""Intervals and tests for means of correlated numbers: block bootstrap, paired test, Holm, seeds. NumPy only.

The nats of neighbouring characters go together (a hard word, a speaker, a topic), so characters are not independent
draws and an i.i.d. bootstrap gives intervals far too short. Resampling contiguous blocks, longer than the correlation
reaches, keeps it (circular block bootstrap: Politis & Romano 1992). Block length: Politis & White 2004, corrected by
Patton, Politis & White 2009, applied at several scales, because a weak but long correlation is invisible at lag 1, 2, 3
and yet dominates the error of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 4000
_MIN_BLOCKS = 30  # fewer blocks than this and the spread of their sums is a guess
_MAX_BLOCKS = 2000  # more than this only cost time: blocks that are longer than they need be do no harm


@dataclass(frozen=True)
class Interval:
    """A mean with its uncertainty."""

    mean: float
    low: float  # 95 % interval
    high: float
    std_error: float
    block: int  # length of the resampled blocks, in elements of the series


@dataclass(frozen=True)
class PairedTest:
    """The difference of two means over the same elements, a - b."""

    delta: float
    low: float  # 95 % interval
    high: float
    std_error: float
    p_value: float  # two-sided
    block: int


def block_length(series: npt.ArrayLike) -> int:
    """Length of the blocks to resample, in elements: long enough for the correlation found at any scale from 1 to n / 200."""
    values = np.asarray(series, dtype=np.float64)
    best, cell = 1, 1
    while len(values) >= 200:
        best = max(best, cell * _politis_white(values))
        even = len(values) // 4 * 4
        values, cell = values[:even].reshape(-1, 4).mean(axis=1), cell * 4
    n = len(np.asarray(series))
    return max(1, min(max(best, n // _MAX_BLOCKS), n // _MIN_BLOCKS))


def _politis_white(values: Floats) -> int:
    """Optimal block for a circular bootstrap of the mean; 0 where no correlation is to be seen."""
    n = len(values)
    centred = values - values.mean()
    variance = float(centred @ centred) / n
    if variance <= 0:
        return 0
    lags = min(n // 2, int(np.ceil(np.sqrt(n))) + max(5, int(np.sqrt(np.log10(n)))))
    size = 1 << (n + lags).bit_length()
    spectrum = np.fft.rfft(centred, size)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size)[: lags + 1] / n
    bound = 2 * np.sqrt(np.log10(n) / n)
    quiet = np.abs(covariance[1:] / variance) < bound
    run = max(5, int(np.sqrt(np.log10(n))))
    reach = next((lag for lag in range(len(quiet) - run) if quiet[lag : lag + run].all()), len(quiet) - run)
    if reach == 0:
        return 0
    span = min(2 * reach, lags)
    k = np.arange(1, span + 1)
    taper = np.minimum(1.0, 2 * (1 - k / span))  # flat-top window (Politis & Romano 1995)
    g = 2 * float(np.sum(taper * k * covariance[1 : span + 1]))
    spectral = variance + 2 * float(np.sum(taper * covariance[1 : span + 1]))
    if spectral <= 0:
        return 1
    length = (2 * g * g / (4 / 3 * spectral * spectral)) ** (1 / 3) * n ** (1 / 3)
    return max(1, int(np.ceil(min(length, 3 * np.sqrt(n), n / 3))))


def resampled_means(series: npt.ArrayLike, block: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means of `resamples` texts put together from random blocks of `series` (circular), (resamples,)."""
    values = np.asarray(series, dtype=np.float64)
    n = len(values)
    block = min(block, n)
    count = max(1, round(n / block))
    sums = np.cumsum(np.concatenate([[0.0], values, values[: block - 1] if block > 1 else values[:0]]))
    blocks = (sums[block:] - sums[:-block])[:n] / block  # mean of the block that starts at each element
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        means[start : start + rows] = blocks[rng.integers(0, n, (rows, count))].mean(axis=1)
    return means


def mean_interval(series: npt.ArrayLike, *, block: int | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of `series` with its 95 % block-bootstrap interval; `block` 1 is the i.i.d. bootstrap."""
    values = np.asarray(series, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no numbers to average")
    chosen = block_length(values) if block is None else block
    mean = float(values.mean())
    deviations = _deviations(values, chosen, resamples, seed)
    low, high = np.quantile(deviations, [0.025, 0.975])
    return Interval(mean, mean + float(low), mean + float(high), float(deviations.std()), chosen)


def paired_test(
    a: npt.ArrayLike, b: npt.ArrayLike, *, block: int | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> PairedTest:
    """Is the mean of `a` different from that of `b`, element by element over the same text? Bootstrap of the differences."""
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    chosen = block_length(difference) if block is None else block
    delta = float(difference.mean())
    deviations = _deviations(difference, chosen, resamples, seed)
    low, high = np.quantile(deviations, [0.025, 0.975])
    return PairedTest(delta, delta + float(low), delta + float(high), float(deviations.std()), tail_probability(delta, deviations), chosen)


def _deviations(values: Floats, block: int, resamples: int, seed: int) -> Floats:
    """Bootstrap means minus the mean, widened for the few blocks they are drawn from."""
    means = resampled_means(values, block, resamples, seed)
    count = max(2, round(len(values) / block))
    return (means - values.mean()) * np.sqrt(count / (count - 1))


def tail_probability(delta: float, deviations: Floats) -> float:
    """Two-sided p-value: how often chance alone deviates by |delta| or more (never 0: one is added to both counts)."""
    return (1 + int(np.count_nonzero(np.abs(deviations) >= abs(delta)))) / (len(deviations) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p-values that may each be held against 0.05 although there are several (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
