"""The small parts that every architecture is put together from: linear maps, norms, feed-forwards, dropout.

A layer computes in the dtype of its input. Parameters stay float32 and are cast on use, so that one model trains in
bfloat16 with float32 master weights and without autocast: the casts are a few megabytes a step, where autocast casts
activations again and again. Statistics of norms are float32 whatever the dtype.

Sources: LayerNorm (Ba et al. 2016), RMSNorm (Zhang & Sennrich 2019), GELU (Hendrycks & Gimpel 2016), SwiGLU (Shazeer 2020),
dropout (Srivastava et al. 2014).
Shapes: B batch, T tokens, C channels of the residual stream, F hidden width of a feed-forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_cli.models import dropout, kernels


class Linear(nn.Linear):
    """`x @ weight.T + bias`, in the dtype of x."""

    weight: nn.Parameter  # torch itself declares a mere Tensor

    def reset_parameters(self) -> None:
        """Nothing: every model draws its own weights, from a generator of its own."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """A row for every id."""

    weight: nn.Parameter

    def reset_parameters(self) -> None:
        """Nothing, as above; and to draw for a mere outline torch would import for a second."""


class LayerNorm(nn.Module):
    """Subtract the mean over channels, divide by the standard deviation, scale; `bias` is optional."""

    eps = 1e-5

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale: LayerNorm without mean and bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


class Dropout(nn.Module):
    """Zero each element with probability p while training and scale the rest by 1 / (1 - p).

    Masks come from `generator`, or from torch's default one while it is None.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    @property
    def active(self) -> bool:
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        return dropout.dropout(x, self.p, self.generator) if self.active else x

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual + dropout(x)`."""
        return dropout.add_dropped(residual, x, self.p, self.generator) if self.active else residual + x


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between them, applied to each token alone (GPT-2)."""

    def __init__(self, width: int, hidden: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.down(kernels.activation(self.up(x), self.activation))  # (B, T, C) -> (B, T, F) -> (B, T, C)
        return h


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`; gate and up are one matrix, gate's rows first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(kernels.swiglu(self.gate_up(x)))  # (B, T, 2F) -> (B, T, F) -> (B, T, C)
        return y


def hidden_width(width: int, multiple: float) -> int:
    """Hidden width of a feed-forward: `multiple` times the width, rounded to a multiple of 16 for the matrix units."""
    return max(16, round(width * multiple / 16) * 16)
