"""Installed equals plain: what makes models fast leaves their numbers alone."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import CASES, build, every_model, gradients, tokens
from torch import Tensor, nn

from minigpt_cli.accel import attention, kernels
from minigpt_cli.accel.install import FAST, install
from minigpt_cli.models import attention as plain_attention
from minigpt_cli.registry import ARCHITECTURES

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def pair(arch: str, variant: dict[str, object]) -> tuple[nn.Module, nn.Module]:
    """A model of formulas alone, and the same made fast."""
    plain = build(arch, {**variant, "dropout": 0.0} if "dropout" in variant else variant, "formulas")
    return plain, install(copy.deepcopy(plain))


@every_model
@pytest.mark.parametrize("length", [5, 96])  # 96: several blocks of queries, and matrix tiles where there are any
def test_logits_and_gradients_are_those_of_the_formulas(arch: str, variant: dict[str, object], length: int) -> None:
    plain, fast = pair(arch, {**variant, "block_size": 96})
    ids = tokens(3, length + 1)
    with torch.no_grad():
        torch.testing.assert_close(fast(ids[:, :-1]).logits, plain(ids[:, :-1]).logits, **CLOSE)
    expected, found = gradients(plain.train(), ids), gradients(fast.train(), ids)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **CLOSE, msg=name)


@every_model
def test_in_bfloat16_they_differ_by_its_rounding(arch: str, variant: dict[str, object]) -> None:
    plain, fast = pair(arch, {**variant, "block_size": 32})
    exact = plain(tokens(3, 32)).logits.detach()
    plain.compute_dtype = fast.compute_dtype = torch.bfloat16
    ours, theirs = ((m(tokens(3, 32)).logits.float() - exact).norm(dim=-1).median() for m in (fast, plain))
    assert ours < 2 * theirs + 1e-6


@every_model
def test_parameters_are_the_same_tensors_under_the_same_names(arch: str, variant: dict[str, object]) -> None:
    model = build(arch, variant, "formulas")
    before = model.state_dict(keep_vars=True)
    after = install(install(model)).state_dict(keep_vars=True)  # twice is once
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)


def test_every_fast_class_is_used_by_some_architecture() -> None:
    used = {type(module) for arch, variant in CASES for module in install(build(arch, variant, "formulas")).modules()}
    assert set(FAST.values()) <= used
    assert {arch for arch, _ in CASES} == set(ARCHITECTURES)


@torch.no_grad()
def test_a_long_context_needs_no_square_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build("modern", {}, "plain"), tokens(2, 8)
    expected = model(ids).logits

    def refuse(self: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise AssertionError("all scores were written down")

    monkeypatch.setattr(attention, "MOST_SCORES", 1)
    monkeypatch.setattr(plain_attention.CausalAttention, "forward", refuse)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_without_a_compiler_the_formulas_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    for arch, variant in CASES:
        plain, fast = pair(arch, variant)
        torch.testing.assert_close(fast(tokens(2, 8)).logits, plain(tokens(2, 8)).logits, **CLOSE)
