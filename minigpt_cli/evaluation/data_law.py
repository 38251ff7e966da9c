"""How much text is worth: L(n) = E + A·n^-a, fitted to the losses after training on n characters, with intervals. NumPy only.

For a fixed exponent a the law is linear in E and A, so the fit is a grid over a with exact least squares in the losses themselves; the
logarithm of L - E, which is noise where L is close to E, is never taken. The intervals come from fitting again and again with the losses
moved by chance: all sizes together by another text (block bootstrap), and each by other seeds (Student's t, the spread over seeds pooled).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minigpt_cli.evaluation.statistics import Floats, block_length, deviations

_EXPONENTS = np.geomspace(0.02, 4.0, 320)
_RESAMPLES = 2000


@dataclass(frozen=True)
class Value:
    """A fitted number with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class DataLaw:
    """The law of one model, trained the same way on growing parts of one text. Losses in nats per character."""

    floor: Value  # E: what more text cannot take away from this model, trained so long
    scale: float  # A
    exponent: Value  # a
    largest: int  # characters of the largest training text
    doubled: Value  # the loss after training on twice that, minus the loss after training on that; an extrapolation
    misfit: float  # root mean square of the losses' distance from the law
    noise: float  # what chance alone would make of that

    @property
    def is_determined(self) -> bool:
        """Whether the losses say which exponent it is: its interval is not as wide as the range that was tried."""
        return self.exponent.low > float(_EXPONENTS[0]) and self.exponent.high < float(_EXPONENTS[-1])

    def at(self, n_chars: float) -> float:
        """The loss after training on so many characters."""
        return self.floor.mean + self.scale * float(n_chars**-self.exponent.mean)


def fit_data_law(n_chars: Sequence[int], char_nats: Sequence[Sequence[Floats]], *, resamples: int = _RESAMPLES, seed: int = 0) -> DataLaw:
    """The law through the scores at four sizes of the training text or more: for each size the character nats of its seeds, each
    (n_scored,), all of the same text. Raises ValueError for fewer sizes."""
    if len(n_chars) < 4:
        raise ValueError("the law has three numbers: it needs four sizes of text or more")
    texts = [np.mean(np.stack(seeds), axis=0) for seeds in char_nats]
    losses = np.array([float(text.mean()) for text in texts])
    block = max(map(block_length, texts))
    by_text = np.stack([deviations(text, block, resamples, seed) for text in texts], axis=1)  # the same blocks for every size
    errors, freedom = _seed_errors(char_nats)
    by_seed = errors * np.random.default_rng(seed + 1).standard_t(max(1, freedom), (resamples, len(texts))) if freedom else 0.0
    x = np.asarray(n_chars, dtype=np.float64)
    floor, scale, exponent = (float(found[0]) for found in _fit(x, losses[None]))
    floors, scales, exponents = _fit(x, losses + by_text + by_seed)
    steps = scales * (2.0**-exponents - 1) * x.max() ** -exponents
    missed = losses - (floor + scale * x**-exponent)
    own_noise = errors**2 + (by_text - by_text.mean(axis=1, keepdims=True)).var(axis=0)
    return DataLaw(
        floor=_value(floor, floors),
        scale=scale,
        exponent=_value(exponent, exponents),
        largest=max(n_chars),
        doubled=_value(scale * (2.0**-exponent - 1) * x.max() ** -exponent, steps),
        misfit=math.sqrt(float((missed**2).sum()) / (len(x) - 3)),
        noise=math.sqrt(float(own_noise.mean())),
    )


def _seed_errors(char_nats: Sequence[Sequence[Floats]]) -> tuple[Floats, int]:
    """The standard error of each size's mean score over new seeds, and its degrees of freedom; 0 with one seed each."""
    scores = [[float(nats.mean()) for nats in seeds] for seeds in char_nats]
    freedom = sum(len(of_size) - 1 for of_size in scores)
    squares = sum(float(np.var(of_size)) * len(of_size) for of_size in scores)
    spread = math.sqrt(squares / freedom) if freedom else 0.0
    return np.array([spread / math.sqrt(len(of_size)) for of_size in scores]), freedom


def _fit(x: Floats, losses: Floats) -> tuple[Floats, Floats, Floats]:
    """E, A and a, each (rows,), that are nearest to each row of `losses`, (rows, sizes); E and A are not negative."""
    powers = (x / x.max()) ** -_EXPONENTS[:, None]  # (exponents, sizes), scaled, so that A is of the size of the losses
    means, mean = powers.mean(axis=1), losses.mean(axis=1)
    centred, moved = powers - means[:, None], losses - mean[:, None]
    slope = np.maximum(0.0, moved @ centred.T / (centred**2).sum(axis=1))  # (rows, exponents)
    floor = mean[:, None] - slope * means
    through_zero = losses @ powers.T / (powers**2).sum(axis=1)  # the best A where E is 0
    slope, floor = np.where(floor < 0, through_zero, slope), np.maximum(0.0, floor)
    above = floor - mean[:, None] + slope * means
    squares = (moved**2).sum(axis=1)[:, None] - 2 * slope * (moved @ centred.T) + slope**2 * (centred**2).sum(axis=1) + len(x) * above**2
    rows, best = np.arange(len(losses)), squares.argmin(axis=1)
    exponent = _EXPONENTS[best]
    return floor[rows, best], slope[rows, best] * x.max() ** exponent, exponent


def _value(mean: float, resampled: Floats) -> Value:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Value(mean, float(low), float(high))
