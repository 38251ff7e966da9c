"""The small parts of every architecture: linear maps, norms, dropout, feed-forwards.

A layer computes in the dtype of its input. Parameters stay float32 and are cast where they are used, so that one model trains
in bfloat16 with float32 master weights. Statistics of norms are float32 whatever the dtype.

Sources: LayerNorm (Ba et al. 2016), RMSNorm (Zhang & Sennrich 2019), dropout (Srivastava et al. 2014), GELU (Hendrycks & Gimpel
2016), SwiGLU (Shazeer 2020).
Shapes: B batch, T tokens, C channels of the residual stream, F hidden width of a feed-forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`x @ weight.T + bias`."""

    weight: nn.Parameter  # torch declares it as a Tensor

    def reset_parameters(self) -> None:
        """Does nothing: every model draws its weights from an explicit generator."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """A row for every id."""

    weight: nn.Parameter

    def reset_parameters(self) -> None:
        """Does nothing, as above."""


class LayerNorm(nn.Module):
    """Subtract the mean over channels, divide by the standard deviation, scale; `bias` is optional."""

    def __init__(self, width: int, bias: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centered = x.float() - x.float().mean(-1, keepdim=True)
        y = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale: LayerNorm without mean and bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


class Dropout(nn.Module):
    """Zero each element with probability p while training, and scale the rest by 1 / (1 - p) so that the mean stays."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None  # where the masks come from; None: torch's default one

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * keep / (1 - self.p)


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between them, applied to each token alone (GPT-2)."""

    def __init__(self, width: int, hidden: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(activate(self.up(x), self.activation))  # (B, T, C) -> (B, T, F) -> (B, T, C)
        return y


def activate(x: Tensor, name: str) -> Tensor:
    """ReLU: `max(x, 0)`. GELU: `x` times the probability that a standard normal is below x; gelu_tanh is GPT-2's approximation of it."""
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, silu(z) = z * sigmoid(z); gate and up are one matrix, gate's rows first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(swiglu(self.gate_up(x)))  # (B, T, C) -> (B, T, 2F) -> (B, T, F) -> (B, T, C)
        return y


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of (..., 2F), gate first: (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def set_dropout_generator(model: nn.Module, generator: torch.Generator | None) -> None:
    """Draw every dropout mask of `model` from `generator`, which lives on the model's device."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator
