"""Does this machine compute what the formulas say? One training step of a small model of each kind, with kernels and without, here and on
the CPU. For `minigpt --version -v`, whose output people paste where somebody else has to find out what is wrong."""

from __future__ import annotations

import time
from typing import Any

import torch
from pydantic import TypeAdapter
from torch.nn import functional as F

from minigpt_cli.accel.install import install
from minigpt_cli.config import ModelConfig
from minigpt_cli.models.contract import build_model

_ARCHITECTURES = ("classic", "modern", "moe")
_VOCAB, _BLOCK, _BATCH = 64, 64, 8
_TOLERANCE = 1e-3  # of the largest gradient, float32: a kernel with an error is off by much more, rounding by less


def self_test(device: str) -> str:
    """What a step on `device` with kernels gives beside the plain formulas on the CPU, in one line."""
    began, worst, wrong = time.perf_counter(), 0.0, []
    for arch in _ARCHITECTURES:
        plain, fast = _step(arch, "cpu", fast=False), _step(arch, device, fast=True)
        error = max(_difference(a, b) for a, b in zip(plain, fast, strict=True))
        worst = max(worst, error)
        if not error <= _TOLERANCE:
            wrong.append(f"{arch} by {error:.1g}")
    if wrong:
        return f"WRONG: loss or gradients of {', '.join(wrong)} differ from the plain formulas on the CPU"
    return f"a step of {', '.join(_ARCHITECTURES)} equals the plain formulas to {worst:.0e} ({time.perf_counter() - began:.1f} s)"


def _step(arch: str, device: str, *, fast: bool) -> list[torch.Tensor]:
    """Loss and gradients of one step, on the CPU."""
    sizes: dict[str, Any] = {"arch": arch, "n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": _BLOCK}
    generator = torch.Generator().manual_seed(1)
    model = build_model(TypeAdapter(ModelConfig).validate_python(sizes), _VOCAB, 1)
    model.to(device)
    if fast:
        install(model)
    ids = torch.randint(_VOCAB, (_BATCH, _BLOCK + 1), generator=generator).to(device)
    out = model(ids[:, :-1])
    loss = F.cross_entropy(out.logits.flatten(0, 1), ids[:, 1:].flatten()) + out.aux_loss
    loss.backward()
    return [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]


def _difference(plain: torch.Tensor, fast: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((plain - fast).abs().max() / plain.abs().max().clamp_min(1e-6))
