"""What a mixture of experts computes and reports, against one token at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt_cli.accel import expert_kernels
from minigpt_cli.accel import experts as fast
from minigpt_cli.accel.install import install
from minigpt_cli.config import MoEConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.models.moe import BIAS_STEP, Experts

E, C = 4, 32


def experts(**fields: object) -> Experts:
    config = MoEConfig(block_size=8, n_layer=1, n_head=2, n_embd=C, n_experts=E, ffn_mult=1.0, **fields)  # type: ignore[arg-type]
    layer: Experts = build_model(config, 11, 0).blocks[0].moe
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(0, 0.3, generator=torch.Generator().manual_seed(p.numel()))
    return layer


def one_by_one(layer: Experts, x: Tensor) -> Tensor:
    """Every expert of every token, by the formula."""
    gate_up, down = layer.gate_up.view(E, 2, -1, C), layer.down.view(E, C, -1)
    rows = []
    for token in x.reshape(-1, C):
        p = (layer.router.weight @ token).softmax(0)
        chosen = (p + layer.balance_bias).topk(layer.config.moe_top_k).indices
        share = p[chosen] / p[chosen].sum() if layer.config.moe_norm_topk else p[chosen]
        rows.append(
            sum(s * (down[e] @ (F.silu(gate_up[e, 0] @ token) * (gate_up[e, 1] @ token))) for s, e in zip(share, chosen, strict=True))
        )
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("by", ["formulas", "accel", "accel, padded", "accel without C"])
@pytest.mark.parametrize("fields", [{"moe_top_k": 1}, {"moe_top_k": 2}, {"moe_top_k": 3, "moe_norm_topk": True}, {"moe_balance": "bias"}])
def test_output_and_gradients_equal_one_token_at_a_time(fields: dict[str, object], by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "accel, padded":
        monkeypatch.setattr(fast, "PAD", 3)  # 48 rows are enough for it to apply; groups seldom are multiples of 3
    if by == "accel without C":
        monkeypatch.setattr(expert_kernels, "library", lambda: None)
    layer = experts(**fields)
    if by != "formulas":
        install(layer)
    if layer.config.moe_balance == "bias":
        layer.balance_bias.copy_(torch.tensor([0.5, 0.0, -0.5, 0.0]))
    x = torch.randn(4, 30, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(4, 30, C, generator=torch.Generator().manual_seed(1))
    y, expected = layer(x)[0], one_by_one(layer, x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    inputs = [x, *layer.parameters()]
    for found, right in zip(torch.autograd.grad(y, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True):
        torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)


def test_the_router_learns_at_top_1_from_the_task_alone() -> None:
    layer = experts(moe_top_k=1, moe_balance="none")
    y, aux = layer(torch.randn(2, 5, C, generator=torch.Generator().manual_seed(0)))
    assert aux == 0
    y.square().sum().backward()
    assert layer.router.weight.grad is not None
    assert layer.router.weight.grad.abs().sum() > 0


def test_auxiliary_loss_is_its_weight_when_balanced_and_more_when_not() -> None:
    layer = experts(moe_top_k=1, moe_aux_loss_coef=0.5)
    even = torch.full((8, E), 0.25)
    assert layer._aux_loss(even, torch.full((E,), 2)).item() == pytest.approx(0.5)
    uneven = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(8, E)
    assert layer._aux_loss(uneven, torch.tensor([8, 0, 0, 0])).item() == pytest.approx(0.5 * E * 0.7)


def test_load_and_entropy_are_those_of_the_last_training_pass() -> None:
    layer = experts(moe_top_k=2)
    assert layer.expert_load().tolist() == [0.25] * E
    x = torch.randn(2, 5, C, generator=torch.Generator().manual_seed(0))
    layer.train()(x)
    p = (x.view(-1, C) @ layer.router.weight.T).softmax(-1)
    chosen = p.topk(2).indices.flatten()
    torch.testing.assert_close(layer.expert_load(), torch.bincount(chosen, minlength=E) / 20)
    torch.testing.assert_close(layer.router_entropy(), -(p * p.log()).sum(-1).mean())
    before = layer.expert_load().clone()
    layer.eval()(torch.zeros(1, 3, C))
    assert torch.equal(layer.expert_load(), before)


def test_bias_moves_against_the_load_and_evens_it_out() -> None:
    layer = experts(moe_top_k=1, moe_balance="bias").train()
    x = torch.randn(8, 64, C, generator=torch.Generator().manual_seed(0)) + 0.5
    layer(x)
    first = layer.expert_load()
    layer.update_bias(layer.expert_load())
    assert torch.equal(layer.balance_bias, BIAS_STEP * (0.25 - first).sign())
    for _ in range(600):
        layer(x)
        layer.update_bias(layer.expert_load())
    assert layer.expert_load().max() < 0.3 < first.max()
