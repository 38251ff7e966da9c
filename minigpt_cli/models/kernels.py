"""The operations that take the time of a training step apart from matrix products: plain formula first, hand-written gradient below.

Autograd would keep and revisit every intermediate result of these formulas; by hand each tensor is read and written a few times
less, and less is kept for the backward pass. On a CPU with a C compiler one C function (native/) does all of an operation in one
pass, with gradients or without; elsewhere torch does it in a few. Where there is neither a gradient nor a compiler, and inside
torch.compile, which fuses by itself, the plain formulas run; a test holds all of them together, gradients included.

Shapes: B batch, T tokens, H heads, D head size, F hidden width of a feed-forward; `...` any leading dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt_cli.models.native import operations as native

aten = torch.ops.aten


def by_hand(*tensors: Tensor) -> bool:
    """Whether the hand-written gradient should be used: there is a gradient to compute, and no compiler that would do it."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors) and not torch.compiler.is_compiling()


def in_c(x: Tensor, width: int) -> bool:
    """Whether C does an operation on `x`, whose rows have `width` elements."""
    return not torch.compiler.is_compiling() and native.usable(x, width)


# ---- feed-forward


def activation(x: Tensor, name: str) -> Tensor:
    """ReLU, or GELU: `x` times the probability that a standard normal is below x; gelu_tanh is GPT-2's approximation of it."""
    if name == "relu":
        return F.relu(x)
    if in_c(x, x.numel()):
        return native.Gelu.apply(x, name == "gelu_tanh")  # type: ignore[no-any-return,no-untyped-call]
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of (..., 2F), gate first: (..., F)."""
    if in_c(gate_up, gate_up.size(-1) // 2):
        return native.SwiGLU.apply(gate_up)  # type: ignore[no-any-return,no-untyped-call]
    if by_hand(gate_up):
        return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return,no-untyped-call]
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    """Keeps its input alone, and computes silu(gate) again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(_whole_vectors(gate)).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        gate = _whole_vectors(gate)
        result = torch.empty_like(gate_up)
        d_gate, d_up = result.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=d_up)
        through = grad * up
        if gate.is_contiguous():
            d_gate.copy_(aten.silu_backward.grad_input(through, gate, grad_input=through))
        else:
            aten.silu_backward.grad_input(through, gate, grad_input=d_gate)
        return result


def _whole_vectors(x: Tensor) -> Tensor:
    """`x`, copied into one piece if its rows end within a vector: torch is up to three times slower on such rows than on one piece."""
    return x.contiguous() if x.size(-1) % 64 else x


# ---- norms


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension, statistics in float32."""
    if in_c(x, x.size(-1)):
        return native.Norm.apply(x, weight, bias, eps, True)  # type: ignore[no-any-return,no-untyped-call]
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, statistics in float32."""
    if in_c(x, x.size(-1)):
        return native.Norm.apply(x, weight, None, eps, False)  # type: ignore[no-any-return,no-untyped-call]
    if by_hand(x, weight):
        return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return,no-untyped-call]
    return x * _inverse_rms(x, eps) * weight.to(x.dtype)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., 1) in the dtype of x. torch accumulates the norm in float32; to ask for a float32 result would convert all of x first."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).float()
    inverse: Tensor = norm.square().div_(x.size(-1)).add_(eps).rsqrt_().to(x.dtype)
    return inverse


class _RMSNorm(torch.autograd.Function):
    """With n = x * r, r = 1 / rms, and g the gradient of n * weight: dx = r (g w - n mean(g w n)), dw = sum(g n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _inverse_rms(x, eps)
        n = x * r
        ctx.save_for_backward(n, r, weight)
        return n * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        n, r, weight = ctx.saved_tensors
        w = weight.to(g.dtype)
        gn = (g * n).view(-1, g.size(-1))
        mean = (gn @ w).div_(g.size(-1)).view_as(r)
        dx = torch.addcmul(g * w, n, mean, value=-1).mul_(r)
        return dx, gn.sum(0).to(weight.dtype), None


# ---- rotary positions


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x (B, T, H, D), each pair (x[d], x[d + D / 2]) turned by its position's angle; table is (2, T, 1, D): cos and signed sin."""
    cos, sin = table
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin)


class Gains(NamedTuple):
    """Of QK-norm: one row for each query head, then for each key head."""

    weight: Tensor  # (h, D)
    eps: float


def norm_and_rotate(heads: Tensor, h: int, gains: Gains | None, table: Tensor) -> Tensor:
    """The first h heads of (B, T, H, D) (queries and keys) RMS-normed and scaled if there are gains, then rotated; the rest as they are."""
    if in_c(heads, heads.size(-1) // 2):
        weight, eps = gains or (None, 0.0)
        return native.NormAndRotate.apply(heads, h, weight, eps, table)  # type: ignore[no-any-return,no-untyped-call]
    if by_hand(heads):
        if gains is None:
            return _Rotate.apply(heads, h, table)  # type: ignore[no-any-return,no-untyped-call]
        return _NormAndRotate.apply(heads, gains.weight, gains.eps, table)  # type: ignore[no-any-return,no-untyped-call]
    x = heads[:, :, :h]
    if gains is not None:
        x = x * _inverse_rms(x, gains.eps) * gains.weight.to(x.dtype)
    return torch.cat((rotate(x, table), heads[:, :, h:]), dim=2)


def _with_rest(heads: Tensor, h: int) -> tuple[Tensor, Tensor]:
    """A new tensor that agrees with `heads` from head h on, and the view of its first h heads, to be written."""
    result = torch.empty_like(heads)
    result[:, :, h:] = heads[:, :, h:]
    return result, result[:, :, :h]


def _rotate_back(g: Tensor, table: Tensor) -> Tensor:
    """The transpose of `rotate`, which is a rotation the other way."""
    cos, sin = table
    return torch.addcmul((g * sin).roll(g.size(-1) // 2, -1), g, cos)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, h: int, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        ctx.h = h
        result, rotated = _with_rest(heads, h)
        rotated.copy_(rotate(heads[:, :, :h], table))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (table,) = ctx.saved_tensors
        result, first = _with_rest(grad, ctx.h)
        first.copy_(_rotate_back(grad[:, :, : ctx.h], table))
        return result, None, None


class _NormAndRotate(torch.autograd.Function):
    """RMSNorm's gradient behind a rotation's."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, weight: Tensor, eps: float, table: Tensor) -> Tensor:
        h, half = weight.size(0), weight.size(1) // 2
        x = heads[:, :, :h]
        r = _inverse_rms(x, eps)  # (B, T, h, 1)
        n = x * r
        ctx.save_for_backward(n, r, weight, table)
        # The gain w goes into the tables, which are small: rotate(n w) = n (w cos) + roll(n) (roll(w) sin).
        w, (cos, sin) = weight.to(x.dtype), table
        result, rotated = _with_rest(heads, h)
        torch.addcmul(n * (w * cos), n.roll(half, -1), w.roll(half, -1) * sin, out=rotated)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        n, r, weight, table = ctx.saved_tensors
        h, D = weight.shape
        g = _rotate_back(grad[:, :, :h], table)  # gradient of n w
        d_weight = (g * n).view(-1, h * D).sum(0).view(h, D)  # (h, D)
        g.mul_(weight.to(g.dtype))
        mean = torch.linalg.vecdot(g, n).div_(D).unsqueeze(-1)  # (B, T, h, 1)
        result, first = _with_rest(grad, h)
        torch.mul(torch.addcmul(g, n, mean, value=-1), r, out=first)
        return result, d_weight.to(weight.dtype), None, None
