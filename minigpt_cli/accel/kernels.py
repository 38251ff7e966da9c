"""kernels.c as autograd functions. The formulas are in models/; here are pointers, shapes and what the gradient needs.

If `usable` is False (no compiler, another device or dtype, other widths, inside torch.compile), the plain formulas run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.storage import native_build

LANES, CHUNK = 16, 256  # as in vectors.h
QUERIES = 32  # to a multiple of which attention.c takes tokens
IGNORED = -100  # a target without a loss, as torch has it
SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-fopenmp",)

P, N, U, I, F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int32, ctypes.c_float  # noqa: E741
_SIGNATURES = {
    "dropout_forward": (P, P, N, U, I, F, I),
    "gelu_forward": (P, P, P, N, I, I),
    "swiglu_forward": (P, P, P, N, N, I),
    "times_slopes": (P, P, P, N, N, N, I),
    "norm_forward": (P, P, P, P, P, N, N, F, I, I),
    "norm_backward": (P, P, P, P, P, P, P, N, N, I, I),
    "heads_forward": (P, P, P, P, P, N, N, N, N, N, F, I),
    "heads_backward": (P, P, P, P, P, P, P, N, N, N, N, N, I),
    "cross_entropy_forward": (P, P, P, P, N, N, I),
    "cross_entropy_backward": (P, P, P, P, P, N, N, I),
}
_ATTENTION = {
    "forward": (P, P, P, P, N, N, N, N, N, U, I, F, I),
    "backward": (P, P, P, P, P, P, N, N, N, N, N, U, I, F, I),
}


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, built at the first call; None if they cannot be built."""
    return declared(native_build.load(SOURCE, FLAGS), _SIGNATURES, refusing=("cross_entropy_forward", "cross_entropy_backward"))


def declared(library: ctypes.CDLL | None, signatures: Mapping[str, tuple[Any, ...]], refusing: Collection[str]) -> ctypes.CDLL | None:
    """`library` with the types of its functions' arguments, and of the result for those that may refuse their arguments."""
    for name, signature in signatures.items() if library else ():
        function = getattr(library, name)
        function.argtypes, function.restype = signature, I if name in refusing else None
    return library


def load_beside(name: str, signatures: Mapping[str, tuple[Any, ...]], refusing: Collection[str]) -> ctypes.CDLL | None:
    """The functions of another source in this folder; None if they, or the kernels, cannot be built."""
    return declared(native_build.load(SOURCE.with_name(name), FLAGS) if library() else None, signatures, refusing)


def check(refused: int | None, name: str) -> None:
    """Raise MiniGPTError if a function refused its arguments."""
    if refused:
        raise MiniGPTError(
            f"the C function {name} was given sizes or indices outside of its arrays, or found no memory: try MINIGPT_NATIVE=0"
        )


@cache
def attention_library() -> ctypes.CDLL | None:
    """Attention; it uses matrix tiles if the processor has them and the system allows them."""
    found = load_beside("attention.c", _ATTENTION, refusing=_ATTENTION)
    if found:
        found.use_amx(1)
    return found


def in_use() -> str:
    """What computes on a CPU: "tiles", "c" or "torch". Each gives the same bits every time; between them results differ by rounding."""
    found = attention_library()
    return "torch" if found is None else "tiles" if found.use_amx(1) else "c"


def why_not() -> str:
    """Why torch computes and not C; empty if C does."""
    return native_build.why_not(SOURCE, FLAGS)


def usable(x: Tensor, width: int = 0) -> bool:
    """Whether the kernels can work on `x`, whose rows have `width` elements."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and width % LANES == 0
        and library() is not None
    )


def _call(name: str, like: Tensor, *arguments: Tensor | float | None) -> None:
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    check(getattr(library(), name)(*values, like.dtype == torch.bfloat16), name)


def as_float(x: Tensor | None) -> Tensor | None:
    """Gains, biases and tables are read as float32."""
    return None if x is None else x.detach().float().contiguous()


class DropoutMask(NamedTuple):
    """A dropout mask that is computed where it is needed: a byte below `threshold` drops its element."""

    seed: int
    threshold: int
    scale: float


NO_DROPOUT = DropoutMask(0, 0, 1.0)


# ---- activations


class Gelu(torch.autograd.Function):
    """GELU. It keeps the slope at each element, so that e^x is computed once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tanh_form: bool) -> Tensor:
        x = x.contiguous()
        result, slope = torch.empty_like(x), torch.empty_like(x) if ctx.needs_input_grad[0] else None
        _call("gelu_forward", x, x, result, slope, x.numel(), tanh_form)
        ctx.save_for_backward(slope)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return _times_slopes(grad.contiguous(), slope, LANES, 1), None


class SwiGLU(torch.autograd.Function):
    """SwiGLU. It keeps the derivatives by gate and up instead of gate and up."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        width = gate_up.size(-1) // 2
        result = gate_up.new_empty(*gate_up.shape[:-1], width)
        slopes = torch.empty_like(gate_up) if ctx.needs_input_grad[0] else None
        _call("swiglu_forward", gate_up, gate_up, result, slopes, result.numel() // width, width)
        ctx.save_for_backward(slopes)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slopes,) = ctx.saved_tensors
        return _times_slopes(grad.contiguous(), slopes, grad.size(-1), 2)


def _times_slopes(grad: Tensor, slopes: Tensor, width: int, k: int) -> Tensor:
    result = torch.empty_like(slopes)
    _call("times_slopes", grad, grad, slopes, result, grad.numel() // width, width, k)
    return result


# ---- norms


class Norm(torch.autograd.Function):
    """LayerNorm (`center`) or RMSNorm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, center: bool) -> Tensor:
        x, C = x.contiguous(), x.size(-1)
        rows = x.numel() // C
        result, stats = torch.empty_like(x), torch.empty(rows, 2)
        _call("norm_forward", x, x, as_float(weight), as_float(bias), result, stats, rows, C, eps, center)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.center = center
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        grad, C = grad.contiguous(), x.size(-1)
        rows = x.numel() // C
        dx, sums = torch.empty_like(x), torch.zeros(2, -(-rows // CHUNK), C)
        _call("norm_backward", x, x, stats, as_float(weight), grad, dx, sums[0], None if bias is None else sums[1], rows, C, ctx.center)
        dw, db = sums.sum(1)
        return dx, dw.to(weight.dtype), None if bias is None else db.to(bias.dtype), None, None


class NormAndRotate(torch.autograd.Function):
    """The first h heads of (B, T, H, D) normed with gain (h, D), if there is one, and rotated by angles (2, T, D / 2)."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, h: int, gain: Tensor | None, eps: float, angles: Tensor) -> Tensor:
        heads = heads.contiguous()
        B, T, H, D = heads.shape
        result, stats = torch.empty_like(heads), torch.empty(B * T, h)
        _call("heads_forward", heads, heads, as_float(gain), angles, result, stats, B * T, H, h, D, T, eps)
        ctx.save_for_backward(heads, gain, stats, angles)
        ctx.h = h
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        heads, gain, stats, angles = ctx.saved_tensors
        grad = grad.contiguous()
        B, T, H, D = heads.shape
        dx = torch.empty_like(heads)
        sums = torch.zeros(-(-B * T // CHUNK), ctx.h, D)
        _call("heads_backward", heads, heads, as_float(gain), angles, stats, grad, dx, sums, B * T, H, ctx.h, D, T)
        return dx, None, None if gain is None else sums.sum(0).to(gain.dtype), None, None


# ---- dropout


def draw_dropout_mask(p: float, generator: torch.Generator | None) -> DropoutMask:
    """A mask that drops with probability p. A byte resolves only 1/256, so the threshold is p * 256 rounded up or down at random: the
    mean over masks is exactly p. Each mask is scaled by the share that it keeps."""
    seed, rounding = torch.randint(1 << 62, (2,), generator=generator).tolist()
    threshold = min(255, int(p * 256 + rounding * 2.0**-62))
    return DropoutMask(seed, threshold, 256 / (256 - threshold))


class Dropped(torch.autograd.Function):
    """`dropout(x)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: DropoutMask) -> Tensor:
        ctx.mask = mask
        return _dropped(x, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _dropped(grad, ctx.mask), None


def _dropped(x: Tensor, mask: DropoutMask) -> Tensor:
    x = x.contiguous()
    result = torch.empty_like(x)
    _call("dropout_forward", x, x, result, x.numel(), mask.seed, mask.threshold, mask.scale)
    return result


# ---- attention


def attention_usable(x: Tensor) -> bool:
    """Whether attention can be computed in C over x, which may be the input of its layer."""
    return usable(x) and attention_library() is not None


class Attention(torch.autograd.Function):
    """Attention of q, k, v, the heads of (B, T, H + 2K, D), each from the token `begins` (B, T) on: (B, T, H * D). Keeps its result and
    one number a row."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, n_head: int, mask: DropoutMask, begins: Tensor | None) -> Tensor:
        heads, begins = heads.contiguous(), None if begins is None else begins.contiguous()
        B, T, all_heads, D = heads.shape
        result, log_sums = heads.new_empty(B, T, n_head * D), torch.empty(B, n_head, -(-T // QUERIES) * QUERIES)
        ctx.sizes = (B, T, n_head, (all_heads - n_head) // 2, D, *mask, heads.dtype == torch.bfloat16)
        pointers = [None if t is None else t.data_ptr() for t in (heads, begins, result, log_sums)]
        check(attention_library().forward(*pointers, *ctx.sizes), "forward")  # type: ignore[union-attr]
        ctx.save_for_backward(heads, begins, result, log_sums)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        heads, begins, result, log_sums = ctx.saved_tensors
        grad, d_heads = grad.contiguous(), torch.empty_like(heads)
        pointers = [None if t is None else t.data_ptr() for t in (heads, begins, result, log_sums, grad, d_heads)]
        check(attention_library().backward(*pointers, *ctx.sizes), "backward")  # type: ignore[union-attr]
        return d_heads, None, None, None


# ---- loss


class CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[target] of each row of logits (N, V), float32; 0 where the target (N) is `IGNORED`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets = logits.contiguous(), targets.contiguous()
        losses, lse = torch.empty(len(logits)), torch.empty(len(logits))
        _call("cross_entropy_forward", logits, logits, targets, losses, lse, *logits.shape)
        ctx.save_for_backward(logits, targets, lse)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, lse = ctx.saved_tensors
        result = torch.empty_like(logits)
        _call("cross_entropy_backward", logits, logits, targets, lse, grad.contiguous(), result, *logits.shape)
        return result, None
