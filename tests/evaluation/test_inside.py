"""What `runs look` measures, on models whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from minigpt_cli.accel.install import install
from minigpt_cli.config import ARCHITECTURES, ClassicConfig
from minigpt_cli.evaluation import part_costs
from minigpt_cli.evaluation.attention_roles import role_keys, watch_sample
from minigpt_cli.evaluation.inside import Inside, _experts, measure
from minigpt_cli.evaluation.sample import OTHER, Sample
from minigpt_cli.models.contract import build_model
from minigpt_cli.models.plain import opened

V, T = 12, 24
LETTERS = [bytes([letter]) for letter in b"abcdefghij \n"]


def sample(ids: np.ndarray, window: int = T) -> Sample:
    """A sample of LETTERS, whole windows of it, after the token 0."""
    ids = ids[: len(ids) // window * window]
    text = b"".join(LETTERS[i] for i in ids.tolist())
    ones = np.ones(len(ids), dtype=np.int64)
    return Sample(np.concatenate([[0], ids]), window, np.zeros(window, np.int64), ones.astype(bool), ones, text, None)


def loaded(model: nn.Module) -> Any:
    """A model as checkpoints.load returns it."""
    return SimpleNamespace(model=model, tokenizer=SimpleNamespace(token_bytes=lambda: LETTERS), config=SimpleNamespace(model=model.config))


def measured(model: nn.Module, text: Sample) -> Inside:
    return measure(loaded(install(model.eval())), text)


def random_text(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, n)


def copied_text(n: int) -> np.ndarray:
    """The letters in random orders, each order twice in its window."""
    rng = np.random.default_rng(0)
    once = np.stack([rng.permutation(V) for _ in range(n // T)])
    return np.concatenate([once, once], axis=1).ravel()


@torch.no_grad()
def induction_model() -> nn.Module:
    """Two layers of attention, written by hand. Head 0.0 brings each token the one before it; head 1.0 looks for tokens that follow
    the present one, and expects them again. The second head of each layer is never read."""
    width, tokens, places, previous, answer = 112, 0, V, V + T, 2 * V + T  # where the channels of each begin
    config = ClassicConfig(block_size=T, n_layer=2, n_head=2, n_embd=width, ffn_mult=0.1)
    model: Any = build_model(config, V)
    for p in model.parameters():
        p.zero_()
    head = width // 2
    one_hot, strong = torch.eye(width), 3.0
    model.token_embedding.weight.copy_(one_hot[tokens : tokens + V])
    model.position_embedding.weight.copy_(one_hot[places : places + T])
    for norm in (model.final_norm, *(n for block in model.blocks for n in (block.norm1, block.norm2))):
        norm.weight.fill_(1.0)
    q, k, v = (slice(i * width, i * width + head) for i in range(3))  # rows of the first head
    first, second = model.blocks[0].attention, model.blocks[1].attention
    first.qkv.weight[q][: T - 1] = strong * one_hot[places + 1 : places + T]
    first.qkv.weight[k][: T - 1] = strong * one_hot[places : places + T - 1]
    first.qkv.weight[v][:V] = 0.15 * one_hot[tokens : tokens + V]
    first.out.weight[previous : previous + V, :V] = torch.eye(V)
    second.qkv.weight[q][:V] = strong * one_hot[tokens : tokens + V]
    second.qkv.weight[k][:V] = strong * one_hot[previous : previous + V]
    second.qkv.weight[v][:V] = one_hot[tokens : tokens + V]
    second.out.weight[answer : answer + V, :V] = torch.eye(V)
    model.head.weight[:, answer : answer + V] = 0.2 * torch.eye(V)  # a modest bet: a string's first copy follows nothing
    return model


def test_induction_that_is_written_by_hand_is_recognised_with_what_it_is_worth() -> None:
    found = measured(induction_model(), sample(copied_text(64 * T)))
    parts = {part.part: part for part in found.parts}
    assert list(parts["head 0.0"].roles) == ["previous"]
    assert list(parts["head 1.0"].roles) == ["induction"]
    assert min(parts["head 0.0"].roles["previous"], parts["head 1.0"].roles["induction"]) > 0.9
    for name in ("head 0.0", "head 1.0", "layer 0", "layer 1", "positions"):
        assert parts[name].measurable, name
        assert parts[name].delta_nats_per_char > 0.3, name
    assert found.copying is not None
    assert found.copying.second < found.copying.first - 1


def test_a_head_that_is_not_read_costs_exactly_nothing_and_has_no_role() -> None:
    found = measured(induction_model(), sample(copied_text(64 * T)))
    for part in found.parts:
        if part.part in ("head 0.1", "head 1.1", "mlp 0", "mlp 1"):
            assert (part.delta_nats_per_char, part.ci95, part.p_holm) == (0.0, (0.0, 0.0), 1.0)
            assert not part.measurable
            assert part.roles == {}


@pytest.mark.parametrize("arch", ["classic", "modern", "moe"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_model_gets_no_roles(arch: str, seed: int) -> None:
    config = ARCHITECTURES[arch].model_validate({"block_size": T, "n_layer": 2, "n_head": 4, "n_embd": 32})
    found = measured(build_model(config, V, seed), sample(random_text(16 * T, seed)))
    assert [part.roles for part in found.parts] == [{}] * len(found.parts)
    assert sum(bool(part.attends) for part in found.parts) == 8


@pytest.mark.parametrize("arch", ["classic", "modern", "moe"])
def test_going_on_from_the_stream_gives_the_loss_of_the_whole_computation(arch: str) -> None:
    config = ARCHITECTURES[arch].model_validate({"block_size": T, "n_layer": 3, "n_head": 2, "n_embd": 32})
    model = install(build_model(config, V, 1).eval())
    text = sample(random_text(5 * T))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)), alpha=0.2)
    means = watch_sample(model, text, LETTERS, lambda _: None).means
    _, without = part_costs.part_losses(model, text, means, lambda _: None)
    rows = torch.from_numpy(text.rows.copy())
    assert set(without) == {*part_costs.parts_of_model(model)}
    for part, nats in without.items():
        with torch.inference_mode(), opened(model, without={part}, means=means):
            logits = model(rows[:, :-1]).logits
        expected = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").numpy()
        np.testing.assert_allclose(nats, expected, atol=1e-4, err_msg=part)


def test_a_table_of_pairs_has_no_parts_and_needs_one_token_of_context() -> None:
    model: Any = build_model(ARCHITECTURES["bigram"].model_validate({"block_size": T}), V, 1)
    with torch.no_grad():
        model.table.normal_(generator=torch.Generator().manual_seed(0))
    found = measured(model, sample(random_text(64 * T)))
    assert found.parts == []
    assert {round(each.nats_per_char, 9) for each in found.context} == {round(found.context[0].nats_per_char, 9)}
    assert not any(each.short for each in found.context)


def test_a_context_that_is_too_short_is_marked() -> None:
    found = measured(induction_model(), sample(copied_text(64 * T)))
    assert [each.tokens for each in found.context] == [1, 2, 4, 8, 16, 24]
    assert [each.short for each in found.context] == [True] * 4 + [False] * 2  # the copy is 12 tokens back


def test_kinds_and_places_share_the_whole_text_and_its_loss() -> None:
    found = measured(induction_model(), sample(random_text(32 * T)))
    for losses in (found.kinds, found.positions):
        assert sum(each.share for each in losses) == pytest.approx(1)
        assert sum(each.share_of_loss for each in losses) == pytest.approx(1)
        assert sum(each.share * each.nats_per_char for each in losses) == pytest.approx(found.nats_per_char)
        assert all(each.ci95[0] <= each.nats_per_char <= each.ci95[1] for each in losses)


def test_dropout_changes_the_loss_only_while_it_is_on() -> None:
    config = ClassicConfig(block_size=T, n_layer=1, n_head=2, n_embd=16, dropout=0.3, init_std=0.5)
    found = measured(build_model(config, V, 1), sample(random_text(8 * T)))
    assert found.dropout is not None
    assert len(set(found.dropout.on)) == 5
    assert len(set(found.dropout.off)) == 1
    assert measured(induction_model(), sample(random_text(2 * T))).dropout is None


def test_keys_of_roles_are_those_that_their_names_say() -> None:
    ids = torch.tensor([[3, 1, 3, 1, 2]])
    keys = role_keys(ids, ids == 1, ids == 2)
    expected_keys = {"itself": [3], "previous": [2], "one before previous": [1], "same earlier": [1]}
    expected_keys |= {"space": [1, 3], "first": [0]}
    for role, expected in expected_keys.items():
        assert keys[role][0, 3].nonzero().flatten().tolist() == expected, role
    assert keys["line start"][0, 4].nonzero().flatten().tolist() == [4]
    assert not any(found[0, 0].any() for found in keys.values())
    assert role_keys(ids, ids == 1, ids == 2, causal=False)["next"][0, 1].nonzero().flatten().tolist() == [2]


def test_experts_that_ignore_the_character_tell_nothing_and_a_perfect_split_tells_all() -> None:
    table = np.zeros((OTHER + 1, 2))
    table[:2] = [[10, 30], [20, 60]]
    (independent,) = _experts([table])
    assert independent.information == pytest.approx(0)
    assert independent.shares == pytest.approx([0.25, 0.75])
    table[:2] = [[10, 0], [0, 10]]
    (split,) = _experts([table])
    assert split.information == pytest.approx(np.log(2))
    assert list(split.by_kind.values()) == [[1, 0], [0, 1]]
