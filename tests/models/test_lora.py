"""Adapters: they begin as nothing, learn, merge exactly, and leave what they are added to alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minigpt_cli.config import ClassicConfig, LoraConfig, ModernConfig, MoEConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.models import lora
from minigpt_cli.models.contract import build_model

V, T = 11, 8
SIZES: dict[str, Any] = {"block_size": T, "n_layer": 2, "n_head": 2, "n_embd": 16}
CONFIGS = {
    "classic": ClassicConfig(bias=True, **SIZES),
    "modern": ModernConfig(zero_init=False, **SIZES),
    "moe": MoEConfig(zero_init=False, **SIZES),
}
IDS = torch.tensor([[1, 5, 2, 9, 0, 3]])


def adapted(arch: str, **settings: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor], LoraConfig]:
    config = LoraConfig(lora_rank=3, **settings)
    model = build_model(CONFIGS[arch], V, 0)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora.attach(model, config, seed=1)
    return model, base, config


def shake(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=generator)


@pytest.mark.parametrize("arch", CONFIGS)
def test_fresh_adapters_change_nothing(arch: str) -> None:
    model, base, _ = adapted(arch)
    plain = build_model(CONFIGS[arch], V)
    plain.load_state_dict(base)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("arch", CONFIGS)
def test_merging_equals_base_plus_adapters(arch: str) -> None:
    model, base, config = adapted(arch)
    shake(model)
    stored = lora.trained(model, model.state_dict())
    plain = build_model(CONFIGS[arch], V)
    plain.load_state_dict(lora.merged(base, stored, config))
    torch.testing.assert_close(plain.eval()(IDS).logits, model.eval()(IDS).logits, atol=1e-5, rtol=1e-5)
    assert not torch.equal(plain(IDS).logits, build_with(arch, base)(IDS).logits)


def build_with(arch: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = build_model(CONFIGS[arch], V)
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("arch", CONFIGS)
def test_only_adapters_get_gradients_and_little_is_stored(arch: str) -> None:
    model, base, _ = adapted(arch)
    shake(model)
    model(IDS).logits.logsumexp(-1).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if lora.is_adapter(name)}
    stored = lora.trained(model, model.state_dict())
    assert set(stored) == with_gradient
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in base.items())


def test_the_seed_decides_the_adapters() -> None:
    first, second = (lora.trained(m, m.state_dict()) for m in (adapted("modern")[0], adapted("modern")[0]))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_model(CONFIGS["modern"], V, 0)
    lora.attach(other, LoraConfig(lora_rank=3), seed=2)
    name = "blocks.0.attention.qkv.lora_a"
    assert not torch.equal(other.state_dict()[name], first[name])


def test_tensors_named_whole_are_trained_and_stored_whole() -> None:
    model = build_model(CONFIGS["modern"], V, 0)
    lora.attach(model, LoraConfig(lora_rank=2), 0, whole=["token_embedding.weight"])
    assert "token_embedding.weight" in lora.trained(model, model.state_dict())
    assert model.token_embedding.weight.requires_grad


def test_targets_choose_and_unknown_ones_are_refused() -> None:
    model, _, _ = adapted("classic", lora_targets="qkv, down")
    kinds = {name.split(".")[-2] for name in lora.trained(model, model.state_dict())}
    assert kinds == {"qkv", "down"}
    with pytest.raises(UsageError, match=r"--lora-targets nose: this model has down, out, qkv, up"):
        adapted("classic", lora_targets="nose")
    with pytest.raises(UsageError, match="nothing to adapt"):
        adapted("classic", lora_targets=" , ")


def test_routers_are_adapted_only_by_name() -> None:
    assert not any("router" in name for name in lora.targets(build_model(CONFIGS["moe"], V, 0), LoraConfig(lora_rank=1)))
    named = lora.targets(build_model(CONFIGS["moe"], V, 0), LoraConfig(lora_rank=1, lora_targets="router"))
    assert named == ["blocks.0.moe.router", "blocks.1.moe.router"]


def test_bfloat16_activations_pass_through() -> None:
    model, _, _ = adapted("modern")
    model.compute_dtype = torch.bfloat16
    assert model(IDS).logits.dtype == torch.bfloat16
