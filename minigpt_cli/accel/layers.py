"""The layers of models/ in C: one pass over memory where torch needs several, gradients included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from minigpt_cli.accel import kernels, products
from minigpt_cli.models import layers


class Linear(layers.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return products.linear(x, self.weight, self.bias) if products.usable(x, self.weight) else super().forward(x)


class LayerNorm(layers.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        if kernels.usable(x, x.size(-1)):
            return kernels.Norm.apply(x, self.weight, self.bias, self.eps, True)  # type: ignore[no-any-return,no-untyped-call]
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype), self.eps)


class RMSNorm(layers.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        if kernels.usable(x, x.size(-1)):
            return kernels.Norm.apply(x, self.weight, None, self.eps, False)  # type: ignore[no-any-return,no-untyped-call]
        return super().forward(x)


class Dropout(layers.Dropout):
    """A mask is only a seed: its bytes are computed from it in both passes (torch draws one number for each element, 7 ns each)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if is_compiling():  # a compiler fuses torch's dropout, which uses the default generator
            return F.dropout(x, self.p)
        if kernels.usable(x):
            return kernels.Dropped.apply(x, kernels.draw_dropout_mask(self.p, self.generator))  # type: ignore[no-any-return,no-untyped-call]
        return super().forward(x)


class FeedForward(layers.FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up, self.down
        if self.activation != "relu" and type(up) is type(down) is Linear and products.usable(x, up.weight, down.weight):
            activation = products.GELU_TANH if self.activation == "gelu_tanh" else products.GELU
            return products.feed_forward(x, up.weight, up.bias, down.weight, down.bias, activation)
        h = up(x)
        if self.activation == "relu" or not kernels.usable(h, h.numel()):
            y: Tensor = down(layers.activate(h, self.activation))
        else:
            y = down(kernels.Gelu.apply(h, self.activation == "gelu_tanh"))  # type: ignore[no-untyped-call]
        return y


class SwiGLU(layers.SwiGLU):
    def forward(self, x: Tensor) -> Tensor:
        up, down = self.gate_up, self.down
        if type(up) is type(down) is Linear and products.usable(x, up.weight, down.weight):
            return products.feed_forward(x, up.weight, None, down.weight, None, products.SWIGLU)
        y: Tensor = down(swiglu(up(x)))
        return y


def swiglu(gate_up: Tensor) -> Tensor:
    """As models.layers.swiglu."""
    if kernels.usable(gate_up, gate_up.size(-1) // 2):
        return kernels.SwiGLU.apply(gate_up)  # type: ignore[no-any-return,no-untyped-call]
    return layers.swiglu(gate_up)


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """As F.cross_entropy in float32."""
    if not kernels.usable(logits) or targets.dtype != torch.int64:
        return F.cross_entropy(logits.float(), targets, reduction=reduction)
    losses: Tensor = kernels.CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return losses.sum() / (targets != kernels.IGNORED).sum() if reduction == "mean" else losses
