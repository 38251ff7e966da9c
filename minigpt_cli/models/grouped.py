"""Rows in groups: what a mixture of experts needs beside ordinary layers. Each formula first, its hand-written gradient below.

Shapes: N tokens, k experts of each, C channels; M rows in groups one after another (counts says how many in each of E), I and O widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minigpt_cli.models.kernels import by_hand
from minigpt_cli.models.layers import Linear
from minigpt_cli.models.native import experts as native

PAD = 128  # rows; see pairs_by_expert


class Pairs(NamedTuple):
    """The pairs of N tokens and k experts, token by token and expert by expert. M = N k, or more where groups are padded."""

    order: Tensor  # (M,) which pair, counted token by token, stands at each place when sorted by expert; N k at padding
    back: Tensor  # (N k,) the inverse: where each pair stands
    k: int
    counts: list[int]  # rows of each expert, padding included; their sum is M


def probabilities(x: Tensor, router: nn.Module) -> Tensor:
    """How likely each expert is for each row of x (N, C), by its router: (N, E), float32."""
    if type(router) is Linear and not torch.compiler.is_compiling() and native.usable(x, router.out_features):
        return native.Route.apply(x, router.weight)  # type: ignore[no-any-return,no-untyped-call]
    probs: Tensor = router(x).float().softmax(-1)
    return probs


def pairs_by_expert(chosen: Tensor, n_experts: int) -> Pairs:
    """Sort the pairs of `chosen` (N, k), the experts of each token.

    On a CPU a product of a shape that was not seen before costs as much as several of known shape, since oneDNN compiles a kernel for it,
    and the experts' shares change at every step. So large groups are padded to multiples of PAD rows: a few dozen shapes in all. The last
    group takes what is left of a number of rows that is always the same, so that freed memory fits at the next step.
    """
    flat, k = chosen.flatten(), chosen.size(1)
    n, on_cpu = len(flat), flat.device.type == "cpu"
    pad = PAD if on_cpu and n >= 8 * PAD * n_experts else 1
    rows = -(-(n + n_experts * (pad - 1)) // pad) * pad
    if on_cpu and native.library() is not None:
        order, back, counts = native.sort_pairs(flat, n_experts, pad, rows)
        return Pairs(order, back, k, counts)
    used = torch.bincount(flat, minlength=n_experts)
    order = flat.argsort(stable=True)
    if pad == 1:
        back = torch.empty_like(order)
        back[order] = torch.arange(n, device=order.device)
        return Pairs(order, back, k, used.tolist())
    full = (used + (pad - 1)).div_(pad, rounding_mode="floor").mul_(pad)
    full[-1] += rows - full.sum()
    ahead = (full - used).cumsum(0) - (full - used)  # padding of the experts before
    back = torch.empty_like(order)
    back[order] = torch.arange(n) + ahead.index_select(0, flat[order])
    spaced = order.new_full((rows,), n)
    spaced[back] = torch.arange(n)
    return Pairs(spaced, back, k, full.tolist())


def spread(x: Tensor, pairs: Pairs) -> Tensor:
    """Each token's row of x (N, C), once for each of its experts, sorted by expert: (M, C). Padding is zero."""
    if by_hand(x):
        return _Spread.apply(x, pairs)  # type: ignore[no-any-return,no-untyped-call]
    return _spread(x, pairs)


def _spread(x: Tensor, pairs: Pairs) -> Tensor:
    if not torch.compiler.is_compiling() and native.usable(x):
        return native.spread(x, pairs.order, len(pairs.back), pairs.k)
    if len(pairs.order) == len(pairs.back):
        return x.index_select(0, pairs.order // pairs.k if pairs.k > 1 else pairs.order)
    result = x.index_select(0, (pairs.order // pairs.k).clamp_(max=len(x) - 1))
    # Zero rows come out of an expert as zero and add nothing to any gradient.
    return result.index_fill_(0, (pairs.order == len(pairs.back)).nonzero().view(-1), 0)


def combined(y: Tensor, weights: Tensor, pairs: Pairs) -> Tensor:
    """The sum over each token's experts of weight (N, k) times their output, a row of y (M, C): (N, C)."""
    if by_hand(y, weights):
        return _Combined.apply(y, weights, pairs)  # type: ignore[no-any-return,no-untyped-call]
    return (y[pairs.back].view(*weights.shape, -1) * weights[..., None].to(y.dtype)).sum(1)


class _Spread(torch.autograd.Function):
    """The gradient is a look-up as well, not a scattered sum. (torch's own sum over a dimension of 2 is ten times as slow as adding.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(pairs.back)
        ctx.k = pairs.k
        return _spread(x, pairs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (back,) = ctx.saved_tensors
        if native.usable(grad):
            return native.gather_sum(grad, None, back, ctx.k), None
        first, *others = grad.index_select(0, back).view(-1, ctx.k, grad.size(-1)).unbind(1)
        for other in others:
            first = first + other
        return first, None


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, pairs: Pairs) -> Tensor:
        ctx.native = native.usable(y)
        if ctx.native:
            y, exact = y.contiguous(), weights.float().contiguous()
            ctx.save_for_backward(y, exact, pairs.order, pairs.back)
            ctx.weight_dtype = weights.dtype
            return native.gather_sum(y, exact, pairs.back, pairs.k)
        weights = weights.to(y.dtype)
        by_token = y.index_select(0, pairs.back).view(-1, pairs.k, y.size(-1))
        ctx.save_for_backward(by_token, weights, pairs.order)
        result = by_token[:, 0] * weights[:, :1]
        for j in range(1, pairs.k):
            result.addcmul_(by_token[:, j], weights[:, j : j + 1])
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        if ctx.native:
            d_y, d_weights = native.gather_sum_backward(grad, *ctx.saved_tensors)
            return d_y, d_weights.to(ctx.weight_dtype), None
        by_token, weights, order = ctx.saved_tensors
        d_weights = torch.stack([torch.linalg.vecdot(grad, expert) for expert in by_token.unbind(1)], dim=1)
        d_y = torch.empty_like(by_token)
        for j in range(weights.size(1)):
            torch.mul(grad, weights[:, j : j + 1], out=d_y[:, j])
        # What padding gets is of no account: the rows that it meets are zero, and its own gradient is never looked up.
        rows = order if len(order) == weights.numel() else order.clamp(max=weights.numel() - 1)
        return d_y.view(-1, grad.size(-1)).index_select(0, rows), d_weights, None


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
        groups = [torch.split(t, ctx.counts) for t in (grad, x, d_x)]
        for g, rows, out, w, d_w in zip(*groups, weight, d_weight, strict=True):
            torch.mm(g, w, out=out)
            torch.mm(g.T, rows, out=d_w)
        return d_x, d_weight, None
