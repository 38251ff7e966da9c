"""Fast forms of the textbook's layers, put on a finished model.

`install` changes the class of every layer that has a fast form here. Parameters, their names and the formulas stay as they are, so
logits and gradients differ by rounding alone. A layer computes by its formula wherever its fast form cannot work: on another
device, in a dtype or width that the kernels do not know, without a C compiler, inside torch.compile.
"""

from __future__ import annotations

from torch import nn

from minigpt_cli.accel import attention, experts, layers
from minigpt_cli.models import attention as plain_attention
from minigpt_cli.models import classic, modern, moe
from minigpt_cli.models import layers as plain_layers

FAST: dict[type[nn.Module], type[nn.Module]] = {
    plain_layers.LayerNorm: layers.LayerNorm,
    plain_layers.RMSNorm: layers.RMSNorm,
    plain_layers.Dropout: layers.Dropout,
    plain_layers.FeedForward: layers.FeedForward,
    plain_layers.SwiGLU: layers.SwiGLU,
    plain_attention.CausalAttention: attention.CausalAttention,
    classic.Attention: attention.ClassicAttention,
    modern.Attention: attention.ModernAttention,
    moe.Experts: experts.Experts,
}


def install(model: nn.Module, attention_path: str = "plain") -> nn.Module:
    """`model`, made fast; attention by "plain" products or by torch's fused "sdpa". May be called again to change the path."""
    for module in model.modules():
        if fast := FAST.get(type(module)):
            module.__class__ = fast
        if isinstance(module, attention.CausalAttention):
            module.path = attention_path
    return model
