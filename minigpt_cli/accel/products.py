"""products.c as autograd functions: the linear layers of a training step in bfloat16, for processors that multiply pairs of such numbers.

On other processors, and on Intel's matrix tiles, torch computes them. Weights and their gradients are float32: neither is cast in a pass of
its own. Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minigpt_cli.accel import kernels
from minigpt_cli.accel.kernels import I, N, P

STORE, GELU, GELU_TANH, SWIGLU, TIMES_SLOPE, TIMES_SLOPES = range(6)  # as in products.c
_SIGNATURES = {
    "linear_forward": (P, P, P, P, P, N, N, N, I),
    "linear_backward": (P, P, P, P, N, N, N, I),
    "linear_weight_gradient": (P, P, P, P, N, N, N),
    "has_pairs": (),
}


@cache
def library() -> ctypes.CDLL | None:
    """The products; None if they cannot be built."""
    return kernels.load_beside("products.c", _SIGNATURES, refusing=_SIGNATURES)


@cache
def are_faster() -> bool:
    """Whether they are faster here than torch's."""
    found = library()
    return found is not None and bool(found.has_pairs()) and kernels.in_use() == "c"


def usable(x: Tensor, *weights: Tensor) -> bool:
    """Whether the products of x (..., K) and of what follows from it with `weights` (N, K) can be computed here."""
    return (
        x.dtype == torch.bfloat16
        and x.numel() > 0
        and kernels.usable(x)
        and all(w.dtype == torch.float32 and w.is_contiguous() and w.size(0) % 16 == w.size(1) % 16 == 0 for w in weights)
        and are_faster()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`."""
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]


def feed_forward(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: int) -> Tensor:
    """`activation(x @ up.T + up_bias) @ down.T + down_bias`; the activation is GELU, GELU_TANH or SWIGLU."""
    keep = torch.is_grad_enabled()
    return _FeedForward.apply(x, up, up_bias, down, down_bias, activation, keep)  # type: ignore[no-any-return,no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        return _forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        dw, db = _weight_gradient(grad, x, weight, ctx.needs_input_grad[1:3])
        return _backward(grad, weight) if ctx.needs_input_grad[0] else None, dw, db


class _FeedForward(torch.autograd.Function):
    """It keeps the slopes of the activation, in place of its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: int, keep: bool
    ) -> Tensor:
        x = x.contiguous()
        slopes = x.new_empty(*x.shape[:-1], len(up)) if keep else None
        hidden = _forward(x, up, up_bias, activation, slopes)
        ctx.save_for_backward(x, up, slopes, hidden, down)
        ctx.times = TIMES_SLOPES if activation == SWIGLU else TIMES_SLOPE
        return _forward(hidden, down, down_bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, up, slopes, hidden, down = ctx.saved_tensors
        grad = grad.contiguous()
        d_down, d_down_bias = _weight_gradient(grad, hidden, down, ctx.needs_input_grad[3:5])
        grad = _backward(grad, down, ctx.times, slopes)  # by the input of the activation
        d_up, d_up_bias = _weight_gradient(grad, x, up, ctx.needs_input_grad[1:3])
        dx = _backward(grad, up) if ctx.needs_input_grad[0] else None
        return dx, d_up, d_up_bias, d_down, d_down_bias, None, None


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, activation: int = STORE, slopes: Tensor | None = None) -> Tensor:
    """activation(x @ weight.T + bias); fills `slopes` with its derivatives by each output of the product."""
    (outputs, inputs), M = weight.shape, x.numel() // weight.size(1)
    result = x.new_empty(*x.shape[:-1], outputs // 2 if activation == SWIGLU else outputs)
    _call("linear_forward", x, weight, kernels.as_float(bias), result, slopes, M, outputs, inputs, activation)
    return result


def _backward(grad: Tensor, weight: Tensor, times: int = STORE, slopes: Tensor | None = None) -> Tensor:
    """grad @ weight, times `slopes`."""
    (outputs, inputs), M = weight.shape, grad.numel() // weight.size(0)
    result = grad.new_empty(*grad.shape[:-1], inputs) if slopes is None else torch.empty_like(slopes)
    _call("linear_backward", grad, weight, slopes, result, M, outputs, inputs, times)
    return result


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the weight and of the bias, if wanted."""
    (outputs, inputs), M = weight.shape, x.numel() // weight.size(1)
    d_bias = torch.zeros(outputs) if wanted[1] else None
    if not wanted[0]:
        return None, None if d_bias is None else grad.float().reshape(-1, outputs).sum(0)
    d_weight = torch.empty_like(weight)
    _call("linear_weight_gradient", grad, x, d_weight, d_bias, M, outputs, inputs)
    return d_weight, d_bias


def _call(name: str, *arguments: Tensor | int | None) -> None:
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    kernels.check(getattr(library(), name)(*values), name)
