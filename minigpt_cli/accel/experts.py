"""A mixture's tokens sorted by expert: each expert multiplies all of its tokens at once, and the device is waited for once.

Shapes: N tokens, k experts of each, E experts, C channels; M rows in groups one after another (counts says how many in each of E),
I and O widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigpt_cli.accel import expert_kernels
from minigpt_cli.accel.layers import swiglu
from minigpt_cli.models import moe
from minigpt_cli.models.layers import Linear

PAD = 128  # rows; see pairs_by_expert


class Experts(moe.Experts):
    def route(self, x: Tensor) -> Tensor:
        if isinstance(self.router, Linear) and expert_kernels.usable(x, self.router.out_features):
            return expert_kernels.Route.apply(x, self.router.weight)  # type: ignore[no-any-return,no-untyped-call]
        return super().route(x)

    def mix(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        E, C = self.config.n_experts, x.size(-1)
        pairs = pairs_by_expert(chosen, E, expert_kernels.usable(x))
        h = grouped_linear(gather_rows(x, pairs), self.gate_up.to(x.dtype).view(E, -1, C), pairs.counts)  # (M, 2F)
        y = grouped_linear(swiglu(h), self.down.to(x.dtype).view(E, C, -1), pairs.counts)  # (M, C)
        return combined(y, weights, pairs)


class Pairs(NamedTuple):
    """The pairs of N tokens and k experts, token by token and expert by expert. M = N k, or more where groups are padded."""

    order: Tensor  # (M,) which pair, counted token by token, stands at each place when sorted by expert; N k at padding
    back: Tensor  # (N k,) the inverse: where each pair stands
    k: int
    counts: list[int]  # rows of each expert, padding included; their sum is M


def pairs_by_expert(chosen: Tensor, n_experts: int, in_c: bool) -> Pairs:
    """Sort the pairs of `chosen` (N, k), the experts of each token.

    On a CPU a product of a new shape costs as much as several of a known shape, because oneDNN compiles a kernel for it, and the
    experts' shares change at every step. So C pads large groups to multiples of PAD rows: a few dozen shapes in all. The number of
    rows is always the same and the last group takes the rest, so that freed memory fits at the next step.
    """
    flat, k = chosen.flatten(), chosen.size(1)
    n = len(flat)
    if in_c:
        pad = PAD if n >= 8 * PAD * n_experts else 1
        rows = -(-(n + n_experts * (pad - 1)) // pad) * pad
        order, back, counts = expert_kernels.sort_pairs(flat, n_experts, pad, rows)
        return Pairs(order, back, k, counts)
    order = flat.argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(n, device=order.device)
    return Pairs(order, back, k, torch.bincount(flat, minlength=n_experts).tolist())


def gather_rows(x: Tensor, pairs: Pairs) -> Tensor:
    """Each token's row of x (N, C), once for each of its experts, sorted by expert: (M, C). Padding is zero."""
    if expert_kernels.usable(x):
        return expert_kernels.GatherRows.apply(x, pairs)  # type: ignore[no-any-return,no-untyped-call]
    return x.index_select(0, pairs.order // pairs.k)


def combined(y: Tensor, weights: Tensor, pairs: Pairs) -> Tensor:
    """The sum over each token's experts of weight (N, k) times their output, a row of y (M, C): (N, C)."""
    if expert_kernels.usable(y):
        return expert_kernels.Combine.apply(y, weights, pairs)  # type: ignore[no-any-return,no-untyped-call]
    return (y[pairs.back].view(*weights.shape, -1) * weights[..., None].to(y.dtype)).sum(1)


def grouped_linear(x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """Each group of rows of x (M, I) times its own matrix of `weight` (E, O, I): (M, O)."""
    if expert_kernels.usable(x):
        return _GroupedLinear.apply(x, weight, counts)  # type: ignore[no-any-return,no-untyped-call]
    return torch.cat([rows @ w.T for rows, w in zip(torch.split(x, list(counts)), weight, strict=True)])


class _GroupedLinear(torch.autograd.Function):
    """Every product is written to its place in the result: nothing is concatenated or added afterwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = list(counts)
        result = x.new_empty(x.size(0), weight.size(1))
        for rows, w, out in zip(torch.split(x, ctx.counts), weight, torch.split(result, ctx.counts), strict=True):
            torch.mm(rows, w.T, out=out)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
        groups = [torch.split(t, ctx.counts) for t in (grad, x, d_x)]
        for g, rows, out, w, d_w in zip(*groups, weight, d_weight, strict=True):
            torch.mm(g, w, out=out)
            torch.mm(g.T, rows, out=d_w)
        return d_x, d_weight, None
