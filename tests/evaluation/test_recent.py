"""Laws of scores that expect recent tokens again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from minigpt_cli.config import BigramConfig, ModernConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation.recent import _SHARES, _SHARPNESS, RecentTokens
from minigpt_cli.evaluation.scoring import token_nats
from minigpt_cli.models.contract import build_model

V, T = 11, 8
MODEL = build_model(ModernConfig(block_size=T, n_layer=1, n_head=1, n_embd=16), V, seed=0)
GENERATOR = np.random.Generator(np.random.Philox(3))


def by_the_formula(states: Tensor, nats: Tensor, targets: Tensor, limit: int) -> list[float]:
    """One token after another, each choice on its own."""
    likelihood = {(share, sharpness): 1.0 for share in _SHARES for sharpness in _SHARPNESS}
    found = []
    for i, (state, nat, target) in enumerate(zip(states, nats.tolist(), targets.tolist(), strict=True)):
        recent = range(max(0, i - limit), i)
        expected = {}
        for share, sharpness in likelihood:
            weights = [math.exp(sharpness * float(states[j] @ state)) for j in recent]
            again = sum(w for j, w in zip(recent, weights, strict=True) if targets[j] == target) / (sum(weights) or 1.0)
            expected[share, sharpness] = (1 - share) * math.exp(-nat) + share * again
        total = sum(likelihood.values())
        found.append(-math.log(sum(likelihood[c] / total * expected[c] for c in likelihood)))
        likelihood = {c: likelihood[c] / total * expected[c] for c in likelihood}
    return found


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_the_nats_are_those_of_the_formula_in_pieces_of_any_length(limit: int) -> None:
    generator = torch.Generator().manual_seed(1)
    states, nats = torch.randn(30, 4, generator=generator), torch.rand(30, generator=generator) * 3
    targets = torch.randint(3, (30,), generator=generator)
    recent = RecentTokens(limit)
    pieces = [recent.nats(states[a:b], nats[a:b], targets[a:b]) for a, b in ((0, 7), (7, 8), (8, 30))]
    assert torch.cat(pieces).tolist() == pytest.approx(by_the_formula(states, nats, targets, limit), abs=1e-6)


def test_a_token_depends_on_earlier_tokens_alone() -> None:
    ids = GENERATOR.integers(0, V, 60)
    changed = ids.copy()
    changed[40] = (changed[40] + 1) % V
    before, after = (token_nats(MODEL, x, block_size=T, recent=50) for x in (ids, changed))
    assert np.array_equal(before[:40], after[:40])
    assert not np.array_equal(before[40:], after[40:])


def test_a_text_that_repeats_costs_less_and_no_text_costs_much_more() -> None:
    repeated, random = np.tile(GENERATOR.integers(0, V, 20), 10), GENERATOR.integers(0, V, 200)
    plain = [token_nats(MODEL, ids, block_size=T).sum() for ids in (repeated, random)]
    again = [token_nats(MODEL, ids, block_size=T, recent=100).sum() for ids in (repeated, random)]
    assert again[0] < 0.9 * plain[0]
    assert again[1] < plain[1] + math.log(len(_SHARES) * len(_SHARPNESS))  # as far behind as the best choice can be


def test_an_architecture_without_states_is_refused() -> None:
    with pytest.raises(UsageError, match="--recent"):
        token_nats(build_model(BigramConfig(block_size=T), V, seed=0), np.arange(V), block_size=T, recent=5)
