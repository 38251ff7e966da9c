"""Small models of every architecture in the registry, for tests of what all of them promise: a new one is covered by being registered."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from minigpt_cli.accel.install import install
from minigpt_cli.config import ARCHITECTURES as CLASSES
from minigpt_cli.config import ModelConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.registry import ARCHITECTURES

V, T, B = 11, 8, 3
SMALL = {"block_size": T, "n_layer": 2, "n_head": 4, "n_embd": 32}
VARIANTS: dict[str, list[dict[str, object]]] = {  # beside the defaults of each architecture
    "bigram": [],
    "classic": [{"bias": True, "activation": "relu", "ffn_mult": 1.3}, {"tie_weights": True}, {"dropout": 0.3}],
    "modern": [{"n_kv_head": 2, "zero_init": False}, {"qk_norm": False, "tie_weights": True}, {"dropout": 0.3}],
    "moe": [{"moe_top_k": 1, "n_kv_head": 1}, {"moe_norm_topk": True, "moe_balance": "bias"}, {"dropout": 0.3, "moe_balance": "none"}],
}
WIDE = {"n_head": 2, "n_embd": 64}  # wide enough for every kernel
CASES = [(arch, variant) for arch in ARCHITECTURES for variant in [{}, *([] if arch == "bigram" else [WIDE]), *VARIANTS.get(arch, [])]]
every_model = pytest.mark.parametrize(("arch", "variant"), CASES, ids=[f"{a}-{'-'.join(map(str, v)) or 'default'}" for a, v in CASES])


def configure(arch: str, **fields: object) -> ModelConfig:
    """The configuration of `arch`, with those of `fields` that it has."""
    known = CLASSES[arch].model_fields
    return TypeAdapter(ModelConfig).validate_python({"arch": arch, **{n: v for n, v in (SMALL | fields).items() if n in known}})


def build(arch: str, variant: dict[str, object], path: str, seed: int = 0) -> nn.Module:
    """A model whose every weight is away from zero, since a zero head would satisfy most laws."""
    model = build_model(configure(arch, **variant), V, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.2)
    return made(model.eval(), path)


def made(model: nn.Module, path: str) -> nn.Module:
    return model if path == "formulas" else install(model, path)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def masked(model: nn.Module, end: int) -> nn.Module:
    """The model with attention inside documents alone, each of which ends in the token `end`."""
    model.end_of_text = end  # type: ignore[assignment]
    return model


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    out = model(ids[:, :-1])
    return F.cross_entropy(out.logits.float().flatten(0, 1), ids[:, 1:].flatten()) + out.aux_loss


def gradients(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model, ids).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
