"""What every architecture promises (models/contract.py), over the registry.

Every law holds for the formulas alone and for the model made fast (accel/), with either path of attention.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from architectures import B, T, V, build, configure, every_model, gradients, loss_of, made, tokens
from torch import Tensor

from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.models.contract import build_model
from minigpt_cli.models.layers import set_dropout_generator
from minigpt_cli.training import grad_checkpoint


@pytest.fixture(params=["formulas", "plain", "sdpa"], autouse=True)
def path(request: pytest.FixtureRequest) -> str:
    """The formulas alone, or what accel makes of them with this path of attention."""
    return str(request.param)


@every_model
@torch.no_grad()
def test_future_tokens_do_not_change_past_logits(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)
    ids = tokens(B, T)
    before = model(ids).logits
    for t in range(1, T):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % V
        after = model(changed).logits
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


@every_model
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)
    for batch_size in (1, 2, 5):
        ids = tokens(batch_size, T)
        full = model(ids).logits
        for cuts in ([3, 4, 5, 6, 7], [1, 5], [7]):  # a prefill, then steps of one token or of several
            cache = model.new_cache(batch_size, T)
            parts = [model(ids[:, a:b], cache).logits for a, b in zip([0, *cuts], [*cuts, T], strict=True)]
            torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=1e-4)


@every_model
@torch.no_grad()
def test_a_cache_can_be_used_again_and_does_not_overflow_silently(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)
    cache = model.new_cache(1, 4)
    if cache is None:
        return
    first = model(tokens(1, 4), cache).logits
    assert cache.length == 4
    with pytest.raises(MiniGPTError, match="cache holds 4"):
        model(tokens(1, 1), cache)
    cache.reset()
    torch.testing.assert_close(model(tokens(1, 4), cache).logits, first)


@every_model
def test_weights_depend_on_the_seed_alone(arch: str, variant: dict[str, object], path: str) -> None:
    config = configure(arch, **variant)
    torch.manual_seed(1)
    first = build_model(config, V, seed=3).state_dict()
    torch.manual_seed(2)
    again = build_model(config, V, seed=3).state_dict()
    other = build_model(config, V, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(t.isfinite().all() for t in first.values())


@every_model
def test_matrices_are_the_two_dimensional_weights_of_blocks_but_the_router(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(m.weight)] for m in model.matrices()]
    expected = {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.dim() == 2 and "router" not in n}
    assert len(found) == len(set(found))
    assert set(found) == expected
    for weight, parts in model.matrices():
        assert weight.dim() == 2
        assert weight.size(0) % parts == 0


@every_model
def test_tied_weights_are_one_tensor(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)
    if not getattr(model.config, "tie_weights", False):
        return
    assert model.output_weight is model.token_embedding.weight
    assert not any("head" in name for name in model.state_dict())
    model.load_state_dict(model.state_dict())
    assert model.output_weight is model.token_embedding.weight


@every_model
@torch.no_grad()
def test_bfloat16_is_close_to_float32(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)
    ids = tokens(B, T)
    exact = model(ids).logits
    model.compute_dtype = torch.bfloat16
    rounded = model(ids).logits
    assert all(p.dtype == torch.float32 for p in model.parameters())
    error = (rounded.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    rerouted = 0.1 if arch == "moe" else 0.0  # a close call between two experts may be decided otherwise
    assert (error > 0.04).float().mean() <= rerouted


@every_model
def test_bfloat16_gradients_are_float32_and_close(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)  # in eval mode: without dropout
    exact = gradients(model, tokens(B, T))
    model.compute_dtype = torch.bfloat16
    rounded = gradients(model, tokens(B, T))
    assert all(g.dtype == torch.float32 for g in rounded.values())
    share = 0.3 if arch == "moe" else 0.1  # near a tie, rounding sends a token to another expert
    for name in exact:
        if "router" not in name:
            assert (rounded[name] - exact[name]).norm() < share * exact[name].norm() + 1e-4, name


@every_model
def test_every_parameter_gets_a_gradient(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path).train()
    found = gradients(model, tokens(16, T))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(g.abs().sum() > 0 for g in found.values())


@every_model
def test_checkpointing_changes_no_gradient(arch: str, variant: dict[str, object], path: str) -> None:
    found = []
    for on in (False, True):
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(5)  # of torch's fused attention, which takes no other generator
        model = build(arch, variant, path).train()
        set_dropout_generator(model, generator)
        if on:
            grad_checkpoint.install(model)
        found.append(gradients(model, tokens(B, T)))
        drawn_after = torch.rand(3, generator=generator)
        found[-1]["generator"] = drawn_after  # the stream goes on where it would have
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@every_model
def test_dropout_acts_in_training_alone_and_follows_its_generator(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)
    ids = tokens(B, T)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()

    def run(seed: int) -> Tensor:
        set_dropout_generator(model, torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)  # as above
        return model(ids).logits

    assert torch.equal(run(1), run(1))
    assert torch.equal(run(1), run(2)) == (variant.get("dropout", 0) == 0)


@every_model
def test_a_tiny_batch_is_learned_by_heart(arch: str, variant: dict[str, object], path: str) -> None:
    config = configure(arch, **{**variant, "dropout": 0.0} if "dropout" in variant else variant)
    model = made(build_model(config, V, seed=0), path).train()
    ids = (torch.arange(T + 1) * torch.tensor([[1], [3]]) + torch.tensor([[0], [5]])) % V if arch != "bigram" else torch.arange(T + 1)[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3 if arch == "bigram" else 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model, ids).backward()
        optimizer.step()
    out = model(ids[:, :-1]).logits
    assert F.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten()) < 0.05


@every_model
def test_a_model_built_for_loading_computes_the_same_once_loaded(arch: str, variant: dict[str, object], path: str) -> None:
    model = build(arch, variant, path)
    empty = made(build_model(model.config, V).eval(), path)
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(tokens(B, T)).logits, model(tokens(B, T)).logits)


def test_learned_positions_end_at_the_block_and_rotary_ones_do_not(path: str) -> None:
    with pytest.raises(UsageError, match="8 positions"):
        build("classic", {}, path)(tokens(1, T + 1))
    model = build("modern", {}, path)
    assert model(tokens(1, 3 * T)).logits.shape == (1, 3 * T, V)


def test_active_parameters_leave_out_idle_experts_only(path: str) -> None:
    moe, dense = build("moe", {"moe_top_k": 1, "ffn_mult": 1.0}, path), build("modern", {"ffn_mult": 1.0}, path)
    routers = sum(p.numel() for name, p in moe.named_parameters() if "router" in name)
    assert moe.n_active_params() == dense.n_active_params() + routers
    assert dense.n_active_params() == sum(p.numel() for p in dense.parameters())
