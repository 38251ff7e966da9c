"""Rows in groups: what a mixture of experts needs beside ordinary layers. Each formula first, its hand-written gradient below.

Shapes: M rows in groups one after another (counts says how many in each of E), I and O widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minigpt_cli.models.kernels import by_hand


def permuted(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """`x[order]`, rows (M, I); `back` is the inverse of `order`, so that the gradient is a look-up too and not a scattered sum."""
    return _Permuted.apply(x, order, back) if by_hand(x) else x[order]  # type: ignore[no-any-return,no-untyped-call]


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None


def grouped_linear(x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """Each group of rows of x (M, I) times its own matrix of `weight` (E, O, I): (M, O)."""
    if by_hand(x, weight):
        return _GroupedLinear.apply(x, weight, counts)  # type: ignore[no-any-return,no-untyped-call]
    return torch.cat([rows @ w.T for rows, w in zip(torch.split(x, list(counts)), weight, strict=True)])


class _GroupedLinear(torch.autograd.Function):
    """Every product is written where its result belongs: nothing is split, concatenated or added up afterwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = list(counts)
        result = x.new_empty(x.size(0), weight.size(1))
        for rows, w, out in zip(torch.split(x, ctx.counts), weight, torch.split(result, ctx.counts), strict=True):
            torch.mm(rows, w.T, out=out)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
        groups = [torch.split(t, ctx.counts) for t in (grad, x, d_x)]
        for g, rows, out, w, d_w in zip(*groups, weight, d_weight, strict=True):
            torch.mm(g, w, out=out)
            torch.mm(g.T, rows, out=d_w)
        return d_x, d_weight, None
