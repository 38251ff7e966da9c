"""Dropout that does not dominate: bytes from a fast generator, compared in place, applied by integer products.

On a CPU torch draws one number per element, about 7 ns each, several times what a layer's arithmetic costs. With a C compiler a mask
is only a seed: its bytes are hashed from it where they are needed, twice. Without one a 64-bit draw of NumPy's SFC64, seeded for
each mask from the torch generator, serves eight elements, and a float is zeroed by multiplying its *bits* by 0 or 1, which vector
units do sixteen to thirty-two at a time. Elsewhere torch's own draws are fast enough.

A byte resolves 1/256, so the threshold is p * 256 rounded up or down at random, anew for each mask: over masks the probability is
exactly p, and each mask is scaled by what it really keeps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minigpt_cli.models.native import operations as native

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class Mask(NamedTuple):
    """What a mask keeps: 1 or 0 for each element, uint8, and the factor that makes up for what is lost."""

    keep: Tensor
    scale: float


def draw_mask(shape: tuple[int, ...], p: float, generator: torch.Generator | None, device: torch.device) -> Mask:
    """A mask of `shape` that keeps each element with probability 1 - p, from `generator` (None: torch's default one)."""
    if device.type != "cpu":
        keep = torch.empty(shape, dtype=torch.uint8, device=device).bernoulli_(1 - p, generator=generator)
        return Mask(keep, 1 / (1 - p))
    seed, threshold, scale = draw_seed(p, generator)
    n = math.prod(shape)
    draws = np.random.SFC64(seed).random_raw(-(-n // 8))
    keep = torch.from_numpy(draws).view(torch.uint8)[:n].view(shape)
    return Mask(keep.ge_(threshold), scale)


def draw_seed(p: float, generator: torch.Generator | None) -> native.Mask:
    """What a mask on a CPU is made of: a seed, and the threshold below which a byte drops its element."""
    seed, rounding = torch.randint(1 << 62, (2,), generator=generator).tolist()
    threshold = min(255, int(p * 256 + rounding * 2.0**-62))
    return native.Mask(seed, threshold, 256 / (256 - threshold))


def zeroed(x: Tensor, keep: Tensor, out: Tensor | None = None) -> Tensor:
    """`x` where `keep` is 1, and 0 where it is 0; unscaled."""
    bits = _BITS[x.dtype]
    if out is None:
        out = torch.empty_like(x)
    torch.mul(x.view(bits), keep, out=out.view(bits))
    return out


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        kept = zeroed(x, keep)
        return torch.add(residual, kept, alpha=scale, out=kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return grad, zeroed(grad, keep).mul_(ctx.scale), None, None


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return zeroed(x, keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return zeroed(grad, keep).mul_(ctx.scale), None, None


def dropout(x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """x with each element zeroed with probability p and the rest scaled by 1 / (1 - p)."""
    if torch.compiler.is_compiling():  # a compiler fuses torch's own dropout, which knows the default generator alone
        return torch.nn.functional.dropout(x, p)
    if native.usable(x):
        return native.AddDropped.apply(None, x, draw_seed(p, generator))  # type: ignore[no-any-return,no-untyped-call]
    x = x.contiguous()
    mask = draw_mask(tuple(x.shape), p, generator, x.device)
    return _Dropped.apply(x, mask.keep, mask.scale)  # type: ignore[no-any-return,no-untyped-call]


def add_dropped(residual: Tensor, x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """`residual + dropout(x)` in fewer passes."""
    if torch.compiler.is_compiling():
        return residual + torch.nn.functional.dropout(x, p)
    if native.usable(x) and residual.dtype == x.dtype:
        return native.AddDropped.apply(residual, x, draw_seed(p, generator))  # type: ignore[no-any-return,no-untyped-call]
    x = x.contiguous()
    mask = draw_mask(tuple(x.shape), p, generator, x.device)
    return _AddDropped.apply(residual, x, mask.keep, mask.scale)  # type: ignore[no-any-return,no-untyped-call]
