"""Operations that take most of a training step apart from matrix products, each beside its plain formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, statistics in float32."""
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (x.float() * scale).to(x.dtype) * weight.to(x.dtype)


def activation(x: Tensor, name: str) -> Tensor:
    """ReLU, or GELU: `x` times the probability that a standard normal is below x; gelu_tanh is GPT-2's approximation of it."""
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of (..., 2F), gate first: (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def dropout(x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """x with each element zeroed with probability p and the rest scaled by 1 / (1 - p)."""
    keep = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    return x * keep.div_(1 - p)
