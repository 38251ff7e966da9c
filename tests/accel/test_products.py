"""Linear layers in C, and their gradients, agree with float32; what they cannot compute is left to torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt_cli.accel import kernels, layers, products

pytestmark = pytest.mark.skipif(products.library() is None, reason="no C compiler")
SHAPES = [(1, 16, 16), (7, 48, 80), (300, 80, 48), (257, 16, 208)]  # rows, inputs, outputs
ACTIVATIONS = {"gelu": products.GELU, "gelu_tanh": products.GELU_TANH, "swiglu": products.SWIGLU}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def formula(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor, activation: str) -> Tensor:
    h = F.linear(x, up, up_bias)
    if activation == "swiglu":
        gate, linear = h.chunk(2, dim=-1)
        return F.linear(F.silu(gate) * linear, down, down_bias)
    return F.linear(F.gelu(h, approximate="tanh" if activation == "gelu_tanh" else "none"), down, down_bias)


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, right in zip(found, expected, strict=True):
        assert (ours - right).norm() <= 0.01 * right.norm()


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_layer_and_its_gradients_are_those_of_the_formula(M: int, K: int, N: int, biased: bool) -> None:
    x, weight, bias = drawn(M, K), drawn(N, K, seed=1).requires_grad_(), drawn(N, seed=2).requires_grad_() if biased else None
    rounded, exact = x.bfloat16().requires_grad_(), x.bfloat16().float().requires_grad_()
    grad = drawn(M, N, seed=3).bfloat16()
    y, expected = products.linear(rounded, weight, bias), F.linear(exact, weight, bias)
    parameters = [weight] if bias is None else [weight, bias]
    found = torch.autograd.grad(y, [rounded, *parameters], grad)
    assert [g.dtype for g in found] == [torch.bfloat16, *(torch.float32 for _ in parameters)]
    agree([y, *found], [expected, *torch.autograd.grad(expected, [exact, *parameters], grad.float())])


@pytest.mark.parametrize(("M", "C", "H"), SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_feed_forward_and_its_gradients_are_those_of_the_formula(M: int, C: int, H: int, activation: str) -> None:
    hidden = 2 * H if activation == "swiglu" else H
    parts = [drawn(hidden, C, seed=1), None if activation == "swiglu" else drawn(H, seed=2), drawn(C, H, seed=3), drawn(C, seed=4)]
    up, up_bias, down, down_bias = (None if p is None else (3 * p).requires_grad_() for p in parts)
    x = drawn(M, C)
    rounded, exact = x.bfloat16().requires_grad_(), x.bfloat16().float().requires_grad_()
    y = products.feed_forward(rounded, up, up_bias, down, down_bias, ACTIVATIONS[activation])
    expected = formula(exact, up, up_bias, down, down_bias, activation)
    parameters = [p for p in (up, up_bias, down, down_bias) if p is not None]
    grad = drawn(M, C, seed=5).bfloat16()
    found = torch.autograd.grad(y, [rounded, *parameters], grad)
    agree([y, *found], [expected, *torch.autograd.grad(expected, [exact, *parameters], grad.float())])


def test_rows_do_not_depend_on_each_other_and_results_not_on_the_number_of_threads() -> None:
    x, up, down = drawn(600, 48).bfloat16(), drawn(160, 48, seed=1).requires_grad_(), drawn(48, 80, seed=2).requires_grad_()
    threads, found = torch.get_num_threads(), []
    for n in (1, 2, 3, 7):
        torch.set_num_threads(n)
        y = products.feed_forward(x.requires_grad_(), up, None, down, None, products.SWIGLU)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), (x, up, down))))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    alone = products.feed_forward(x[500:501], up, None, down, None, products.SWIGLU)
    assert torch.equal(alone, found[0][0][500:501])


def test_frozen_parts_get_no_gradient_and_not_a_number_stays_one() -> None:
    x, weight, bias = drawn(5, 16).bfloat16().requires_grad_(), drawn(32, 16), drawn(32, seed=1).requires_grad_()
    y = products.linear(x, weight, bias)
    y.sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(bias.grad, torch.full((32,), 5.0))
    for activation in ACTIVATIONS.values():
        bad = torch.full((2, 16), float("nan")).bfloat16()
        down = drawn(16, 16 if activation == products.SWIGLU else 32)
        assert products.feed_forward(bad, weight, None, down, None, activation).isnan().all()


def test_what_c_cannot_compute_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "are_faster", lambda: True)
    x, weight = torch.ones(3, 16).bfloat16(), torch.ones(32, 16)
    assert products.usable(x, weight)
    assert products.usable(torch.ones(16, 6).bfloat16().t()[:, :16], weight)  # not contiguous
    for other in (x.float(), x[:0]):
        assert not products.usable(other, weight)
    for other in (weight[:31], weight.bfloat16(), torch.ones(16, 32).t(), torch.ones(16, 24)):
        assert not products.usable(x, other)
    layer = layers.Linear(16, 31, bias=False)
    torch.nn.init.ones_(layer.weight)
    assert torch.equal(layer(x), torch.full((3, 31), 16.0).bfloat16())
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert not products.usable(x, weight)


def test_strided_inputs_are_read_in_their_order() -> None:
    x, weight = drawn(16, 40).bfloat16().t(), drawn(32, 16)
    assert torch.equal(products.linear(x, weight, None), products.linear(x.contiguous(), weight, None))
