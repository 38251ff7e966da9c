"""Replace the layers of a finished model by fast ones. Other packages use accel/ through this module alone.

`install` changes the class of every layer that has a fast form here. Parameters, names and formulas stay the same, so logits and
gradients differ by rounding alone. A layer uses its plain formula if its fast form cannot work: on another device, in a dtype or
width that the kernels do not support, without a C compiler, inside torch.compile, and without the file of its fast form.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_cli.models import attention as plain_attention
from minigpt_cli.models import classic, modern, moe
from minigpt_cli.models import layers as plain_layers
from minigpt_cli.models.plain import Plain

_PACKAGE = "minigpt_cli.accel"


def _part(name: str) -> Any:
    """The module of this name in accel/; None if its file, or one that it imports from accel/, is missing."""
    try:
        return import_module(f"{_PACKAGE}.{name}")
    except ImportError as error:
        missing = error.name or ""
        if missing == _PACKAGE or (isinstance(error, ModuleNotFoundError) and missing.startswith(_PACKAGE)):
            return None
        raise


allocator, kernels, expert_kernels = _part("allocator"), _part("kernels"), _part("expert_kernels")
attention, experts, layers = _part("attention"), _part("experts"), _part("layers")
products, muon = _part("products"), _part("muon")

FAST: dict[type[nn.Module], type[nn.Module]] = {}
if layers:
    FAST |= {
        plain_layers.Linear: layers.Linear,
        plain_layers.LayerNorm: layers.LayerNorm,
        plain_layers.RMSNorm: layers.RMSNorm,
        plain_layers.Dropout: layers.Dropout,
        plain_layers.FeedForward: layers.FeedForward,
        plain_layers.SwiGLU: layers.SwiGLU,
    }
if attention:
    FAST |= {
        plain_attention.CausalAttention: attention.CausalAttention,
        classic.Attention: attention.ClassicAttention,
        modern.Attention: attention.ModernAttention,
    }
if experts:
    FAST |= {moe.Experts: experts.Experts}


def install(model: nn.Module, attention_path: str = "plain") -> nn.Module:
    """`model`, made fast; attention by "plain" products or by torch's fused "sdpa". May be called again to change the path. A model from
    which parts are left out stays as it is."""
    if isinstance(model, Plain):
        return model
    for module in model.modules():
        if fast := FAST.get(type(module)):
            module.__class__ = fast
        if attention and isinstance(module, attention.CausalAttention):
            module.path = attention_path
    return model


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The nats of `targets` (N) under `logits` (N, V), computed in float32: their mean without those of target -100, or with "none" (N)."""
    if layers is None:
        return F.cross_entropy(logits.float(), targets, reduction=reduction)
    loss: Tensor = layers.cross_entropy(logits, targets, reduction)
    return loss


def orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], iterations: int) -> Tensor | None:
    """Muon's iteration in bfloat16 on `matrices` (N, rows, columns), float32; None where torch should compute it."""
    return muon.orthogonalise(matrices, coefficients, iterations) if muon and muon.usable(matrices) else None


def in_use() -> str:
    """What computes on a CPU: "tiles", "c" or "torch". Each gives the same bits every time; between them results differ by rounding."""
    return str(kernels.in_use()) if kernels else "torch"


def why_not() -> str:
    """Why torch computes and not C; empty if C does."""
    return str(kernels.why_not()) if kernels else "accel/kernels.py is missing"


def libraries() -> dict[str, ctypes.CDLL]:
    """The C libraries that training uses here, by name; builds them."""
    found = {
        "c": kernels.library() if kernels else None,
        "experts": expert_kernels.library() if expert_kernels else None,
        "attention": kernels.attention_library() if kernels else None,
        "products": products.library() if products else None,
        "muon": muon.library() if muon else None,
    }
    return {name: library for name, library in found.items() if library}


def keep_freed_memory() -> bool:
    """Make the C allocator reuse memory that training frees; False if it has no such setting."""
    return bool(allocator and allocator.keep_freed_memory())
