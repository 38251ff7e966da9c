"""A frozen base in fewer bits: nearly the same, smaller, and adapters still learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minigpt_cli.config import LoraConfig, ModernConfig
from minigpt_cli.errors import MissingExtra
from minigpt_cli.models import lora
from minigpt_cli.models.contract import build_model
from minigpt_cli.training import quantized

CONFIG = ModernConfig(block_size=8, n_layer=2, n_head=2, n_embd=32, zero_init=False)
IDS = torch.tensor([[1, 5, 2, 9, 0, 3]])


def model(bits: str | None) -> Any:
    made = build_model(CONFIG, 11, 0)
    lora.attach(made, LoraConfig(lora_rank=2), 0)
    if bits:
        quantized.quantize_base(made, bits)
    return made


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtra, match=r"--quantize-base needs the extra 'quantize'"):
        quantized.library()


@pytest.mark.parametrize(("bits", "error"), [("8", 0.01), ("4", 0.15)])
def test_logits_stay_near_and_weights_take_less(bits: str, error: float) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    exact, small = model(None), model(bits)
    difference = (small(IDS).logits - exact(IDS).logits).abs().max() / exact(IDS).logits.abs().max()
    assert 0 < difference < error
    stored = {name for name in lora.trained(small, small.state_dict()) if "lora" in name}
    assert stored == {name for name in exact.state_dict() if "lora" in name}
    assert not any(name.endswith("qkv.weight") for name, _ in small.named_parameters())


@pytest.mark.parametrize("bits", ["8", "4"])
def test_adapters_learn_on_a_quantized_base(bits: str) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    small = model(bits)
    small.compute_dtype = torch.bfloat16
    optimizer = torch.optim.AdamW([p for p in small.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(small(IDS[:, :-1]).logits.float().flatten(0, 1), IDS[:, 1:].flatten())
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1
