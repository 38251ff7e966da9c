"""The self-test finds a kernel that computes something else."""

from __future__ import annotations

import pytest
import torch

from minigpt_cli.training import self_test


def test_a_right_machine_passes() -> None:
    assert self_test.self_test("cpu").startswith("a step of classic, modern, moe equals the plain formulas to ")


def test_a_wrong_gradient_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    step = self_test._step

    def wrong(arch: str, device: str, *, fast: bool) -> list[torch.Tensor]:
        found = step(arch, device, fast=fast)
        return [*found[:-1], found[-1] * 1.01] if fast and arch == "modern" else found

    monkeypatch.setattr(self_test, "_step", wrong)
    assert self_test.self_test("cpu").startswith("WRONG: loss or gradients of modern by 0.0")
