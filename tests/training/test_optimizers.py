"""Laws of the optimizers, on matrices small enough to check by singular values."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from torch import Tensor, nn

from minigpt_cli.config import ModernConfig, OptimConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.registry import OPTIMIZERS
from minigpt_cli.training.optimizers import build_optimizer, orthogonalise

TINY = ModernConfig(block_size=8, n_layer=2, n_head=2, n_embd=16)


def model_with_gradients(seed: int = 0) -> nn.Module:
    model = build_model(TINY, 11, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24, 8), (2, 8, 24)])
def test_orthogonalise_keeps_directions_and_makes_singular_values_about_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices)
    assert torch.linalg.svdvals(result).min() > 0.4
    assert torch.linalg.svdvals(result).max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(result.flatten(1), (u @ vh).flatten(1)).min() > 0.95


def test_stacked_parts_are_orthogonalised_separately() -> None:
    """A fused q, k, v moves as three matrices would: each third of its update has its own unit singular values."""
    model = model_with_gradients()
    fused = next(m for m in model.matrices() if m.parts == 3)
    before = fused.weight.detach().clone()
    build_optimizer(model, OptimConfig(weight_decay=0.0), fast_bf16=False).step(1.0)
    update = (before - fused.weight.detach()).view(3, -1, before.shape[1]) / OptimConfig().muon_lr
    assert torch.linalg.svdvals(update).min() > 0.4
    assert torch.linalg.svdvals(update).max() < 1.3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_has_as_many_bytes_as_declared(optimizer: str) -> None:
    made = build_optimizer(model_with_gradients(), OptimConfig.model_validate({"optimizer": optimizer}), fast_bf16=False)
    made.step(1.0)
    assert made.state_bytes == sum(tensor.nbytes for tensor in made.state_tensors().values() if tensor.ndim)  # without counters of steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameter_moves_and_by_no_more_than_its_rate_allows(optimizer: str) -> None:
    model = model_with_gradients()
    before = weights(model)
    build_optimizer(model, OptimConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.0}), fast_bf16=False).step(1.0)
    for name, old in before.items():
        moved = (weights(model)[name] - old).abs().max()
        assert 0 < moved < 0.1, name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_shrinks_matrices_and_leaves_gains_alone(optimizer: str) -> None:
    model = build_model(TINY.model_copy(update={"zero_init": False}), 11, 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = weights(model)
    build_optimizer(model, OptimConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.5}), fast_bf16=False).step(1.0)
    after = weights(model)
    for matrix in model.matrices():
        name = next(n for n, p in model.named_parameters() if p is matrix.weight)
        assert after[name].norm() < before[name].norm()
    gains = [name for name, value in before.items() if value.ndim == 1]
    assert gains
    assert all(torch.equal(before[name], after[name]) for name in gains)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_state_continues_to_the_bit(optimizer: str) -> None:
    config = OptimConfig.model_validate({"optimizer": optimizer})
    straight, resumed = model_with_gradients(), model_with_gradients()
    one, two = (build_optimizer(m, config, fast_bf16=False) for m in (straight, resumed))
    for _ in range(2):
        one.step(1.0)
        two.step(1.0)
    fresh = build_optimizer(resumed, config, fast_bf16=False)
    fresh.load_state_tensors({name: tensor.clone() for name, tensor in two.state_tensors().items()})
    one.step(0.5)
    fresh.step(0.5)
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_refused_step_changes_nothing_without_the_host_waiting(optimizer: str) -> None:
    model = model_with_gradients()
    made = build_optimizer(model, OptimConfig.model_validate({"optimizer": optimizer}), fast_bf16=False)
    made.step(1.0, torch.tensor(0.0))
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    made.step(1.0, torch.tensor(1.0))
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]), name


def test_adamw_agrees_with_the_published_formula() -> None:
    """One parameter, three steps, against Loshchilov & Hutter's algorithm 2 in double precision."""
    parameter = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    holder = nn.Module()
    holder.weight = parameter
    config = OptimConfig(optimizer="adamw", lr=0.1, weight_decay=0.2, beta1=0.9, beta2=0.99)
    made = build_optimizer(holder, config, fast_bf16=False)
    value, m, v = (
        torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        torch.zeros(1, 2, dtype=torch.float64),
        torch.zeros(1, 2, dtype=torch.float64),
    )
    for t in range(1, 4):
        gradient = torch.tensor([[0.5 * t, -2.0]])
        parameter.grad = gradient.clone()
        made.step(1.0)
        m = 0.9 * m + 0.1 * gradient
        v = 0.99 * v + 0.01 * gradient**2
        value = value - 0.1 * (m / (1 - 0.9**t) / ((v / (1 - 0.99**t)).sqrt() + 1e-8) + 0.2 * value)
    assert torch.allclose(parameter.detach().double(), value, atol=1e-5)


def test_no_step_waits_for_torch_to_import_its_compiler() -> None:
    code = """
        import sys, torch
        from minigpt_cli.config import OptimConfig
        from minigpt_cli.training.optimizers import build_optimizer
        layer = torch.nn.Linear(2, 2)
        layer(torch.ones(1, 2)).sum().backward()
        build_optimizer(layer, OptimConfig(optimizer="adamw"), fast_bf16=False).step(1.0)
        sys.exit("torch._dynamo" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", dedent(code)], check=False).returncode == 0
