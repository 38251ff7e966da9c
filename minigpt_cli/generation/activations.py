"""Feed-forward non-linearities in NumPy, in place where they can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np

from minigpt_cli.generation.decoders.plan import Array

_SQRT_HALF = math.sqrt(0.5)
_TANH_SCALE = math.sqrt(2 / math.pi)

# erf(z) = 1 - (a1 t + ... + a5 t^5) exp(-z^2), t = 1 / (1 + p z), for z >= 0: absolute error below 1.5e-7
# (Abramowitz & Stegun 1964, formula 7.1.26). NumPy has no erf of its own.
_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def relu(x: Array) -> Array:
    """max(x, 0), in place."""
    return np.maximum(x, 0, out=x)


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x (Hendrycks & Gimpel 2016)."""
    z = np.abs(x)
    z *= _SQRT_HALF
    t = z * _P
    t += 1
    np.reciprocal(t, out=t)
    series = t * _A[4]
    for a in (_A[3], _A[2], _A[1], _A[0]):
        series += a
        series *= t
    np.multiply(z, z, out=z)
    np.negative(z, out=z)
    np.exp(z, out=z)
    series *= z  # erfc(|x| / sqrt 2)
    # x Phi(x) = max(x, 0) - |x| erfc(|x| / sqrt 2) / 2
    series *= np.abs(x)
    series *= -0.5
    series += np.maximum(x, 0)
    return cast(Array, series)


def gelu_tanh(x: Array) -> Array:
    """GPT-2's approximation: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    t = x * x
    t *= 0.044715
    t += 1
    t *= x
    t *= _TANH_SCALE
    np.tanh(t, out=t)
    t += 1
    t *= x
    t *= 0.5
    return t


def silu(x: Array) -> Array:
    """x / (1 + exp(-x)); exact at both ends: the exponential is kept from overflowing."""
    t = np.negative(x)
    np.minimum(t, 80, out=t)
    np.exp(t, out=t)
    t += 1
    return np.divide(x, t, out=t)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh}
