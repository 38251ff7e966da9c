"""experts.c as autograd functions: routing, and rows on their way to the experts and back. Formulas: models/moe.py; shapes: experts.py."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt_cli.accel import kernels
from minigpt_cli.accel.kernels import CHUNK, I, N, P

if TYPE_CHECKING:
    from minigpt_cli.accel.experts import Pairs

MAX_EXPERTS = 64  # as in experts.c
_SIGNATURES = {
    "route_forward": (P, P, P, N, N, N, I),
    "route_backward": (P, P, P, P, P, P, N, N, N, I),
    "sort_pairs": (P, N, N, N, N, P, P, P, P),
    "gather_rows": (P, P, P, N, N, N, N),
    "clear_padding": (P, P, N, N, N),
    "gather_sum": (P, P, P, P, N, N, N, N, I),
    "gather_sum_backward": (P, P, P, P, P, P, N, N, N, N, I),
}
_REFUSING = ("route_backward", "sort_pairs", "gather_rows", "gather_sum", "gather_sum_backward")


@cache
def library() -> ctypes.CDLL | None:
    """The functions, built at the first call; None if they cannot be built."""
    return kernels.load_beside("experts.c", _SIGNATURES, refusing=_REFUSING)


def usable(x: Tensor, n_experts: int = 0) -> bool:
    """Whether the functions can work on x (..., C) and on a choice between so many experts."""
    return kernels.usable(x, x.size(-1)) and n_experts <= MAX_EXPERTS and library() is not None


def _call(name: str, *arguments: Tensor | int | None) -> None:
    kernels.check(getattr(library(), name)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)), name)


class Route(torch.autograd.Function):
    """Probabilities (N, E), float32, from x (N, C) and the router's weight (E, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, w = x.contiguous(), weight.detach().float().contiguous()
        (rows, C), E = x.shape, w.size(0)
        probs = torch.empty(rows, E)
        _call("route_forward", x, w, probs, rows, E, C, x.dtype == torch.bfloat16)
        ctx.save_for_backward(x, w, probs)
        ctx.weight_dtype = weight.dtype
        return probs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w, probs = ctx.saved_tensors
        (rows, C), E = x.shape, w.size(0)
        dx, sums = torch.empty_like(x), torch.zeros(-(-rows // CHUNK), E, C)
        _call("route_backward", x, w, probs, grad.float().contiguous(), dx, sums, rows, E, C, x.dtype == torch.bfloat16)
        return dx, sums.sum(0).to(ctx.weight_dtype)


def sort_pairs(chosen: Tensor, n_experts: int, pad: int, rows: int) -> tuple[Tensor, Tensor, list[int]]:
    """order (rows,), back (N k,) and the rows of each expert, multiples of `pad`, for the experts `chosen` (N k,) by each pair."""
    chosen, n = chosen.contiguous(), len(chosen)
    counts, following = torch.empty(2, n_experts, dtype=torch.int64)
    order, back = torch.empty(rows, dtype=torch.int64), torch.empty_like(chosen)
    _call("sort_pairs", chosen, n, n_experts, pad, rows, counts, following, order, back)
    return order, back, counts.tolist()


def _gather_sum(x: Tensor, weights: Tensor | None, back: Tensor, k: int) -> Tensor:
    """(N, C): for each token the sum of its k rows of x (M, C), which `back` (N k,) names, times weights (N, k) float32."""
    tokens, C = len(back) // k, x.size(-1)
    result = x.new_empty(tokens, C)
    _call("gather_sum", x.contiguous(), weights, back, result, tokens, k, C, len(x), x.dtype == torch.bfloat16)
    return result


class GatherRows(torch.autograd.Function):
    """(M, C): the row of x (N, C) of each pair, sorted by expert; zero at padding. The gradient is a look-up too, not a scattered sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: Pairs) -> Tensor:
        x, order = x.contiguous(), pairs.order
        result = x.new_empty(len(order), x.size(-1))
        _call("gather_rows", x, order, result, len(order), len(pairs.back), pairs.k, x.size(-1) * x.element_size())
        ctx.save_for_backward(pairs.back)
        ctx.k = pairs.k
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (back,) = ctx.saved_tensors
        return _gather_sum(grad, None, back, ctx.k), None


class Combine(torch.autograd.Function):
    """(N, C): the sum of each token's rows of y (M, C) times weights (N, k)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, pairs: Pairs) -> Tensor:
        y, exact = y.contiguous(), weights.float().contiguous()
        ctx.save_for_backward(y, exact, pairs.order, pairs.back)
        ctx.weight_dtype = weights.dtype
        return _gather_sum(y, exact, pairs.back, pairs.k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        y, weights, order, back = ctx.saved_tensors
        (tokens, k), C = weights.shape, y.size(-1)
        dy, d_weights = torch.empty_like(y), torch.empty_like(weights)
        _call("gather_sum_backward", grad.contiguous(), y, weights, back, dy, d_weights, tokens, k, C, len(y), y.dtype == torch.bfloat16)
        if len(order) > len(back):
            _call("clear_padding", order, dy, len(order), len(back), C * y.element_size())
        return dy, d_weights.to(ctx.weight_dtype), None
