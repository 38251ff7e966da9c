"""Scores equal what a naive formula gives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.evaluation import windows
from minigpt_cli.evaluation.characters import per_character, spelled
from minigpt_cli.evaluation.scoring import Reader, score_ids, score_text, token_nats

V, T = 11, 8


class _Out(NamedTuple):
    logits: Tensor
    aux_loss: Tensor


class _Running(nn.Module):
    """Causal, and sensitive to everything before: logits from the running mean of embeddings."""

    def __init__(self, vocab_size: int = V, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(vocab_size, width, generator=generator))
        self.head = nn.Parameter(torch.randn(width, vocab_size, generator=generator))

    def forward(self, ids: Tensor) -> _Out:
        mean = self.embed[ids].cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]  # (B, T, C)
        return _Out(mean @ self.head, torch.zeros(()))


class _Letters:
    """A tokenizer whose ids are letters a to k."""

    name = "letters"
    vocab_size = V

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(c) - 97 for c in text], dtype=np.uint32)

    def token_bytes(self) -> list[bytes]:
        return [bytes([97 + i]) for i in range(V)]


def _naive(model: nn.Module, past: list[int], target: int) -> float:
    logits = model(torch.tensor([past])).logits[0, -1].detach().double()
    return float(logits.logsumexp(0) - logits[target])


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, V, 45).astype(np.uint16)


def test_consecutive_windows_condition_each_token_on_its_window(ids: np.ndarray) -> None:
    model, context = _Running(), np.array([3, 1, 4])
    nats = token_nats(model, ids, context=context, block_size=T)
    stream = [4, *ids.tolist()]  # the first window begins at the last context token
    expected = [_naive(model, stream[i // T * T : i + 1], stream[i + 1]) for i in range(len(ids))]
    assert nats == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert nats.dtype == np.float64


@pytest.mark.parametrize("stride", [1, 3, T])
@pytest.mark.parametrize("n_context", [0, 2, 20])
def test_stride_gives_every_token_the_context_it_promises(ids: np.ndarray, stride: int, n_context: int) -> None:
    model, context = _Running(), np.random.default_rng(1).integers(0, V, n_context)
    nats = token_nats(model, ids, context=context, block_size=T, stride=stride)
    stream = [*context.tolist(), *ids.tolist()]
    position = n_context or 1
    expected = [] if n_context else [np.log(V)]
    while position < len(stream):  # one window after another, by the definition
        start = max(0, min(position + stride, len(stream)) - 1 - T)
        end = min(start + T + 1, len(stream))
        expected += [_naive(model, stream[start:i], stream[i]) for i in range(position, end)]
        position = end
    assert nats == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_first_token_without_context_costs_log_v(ids: np.ndarray) -> None:
    model = _Running()
    assert token_nats(model, ids, block_size=T)[0] == pytest.approx(np.log(V))
    assert token_nats(model, ids[:1], block_size=T).tolist() == pytest.approx([np.log(V)])
    assert token_nats(model, ids[:0], block_size=T).shape == (0,)


@pytest.mark.parametrize("stride", [0, 5])
def test_score_does_not_depend_on_batch_size(ids: np.ndarray, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = []
    for size in (1, T, 3 * T, 10_000):
        monkeypatch.setattr(windows, "_TOKENS", size)
        totals.append(token_nats(_Running(), ids, block_size=T, stride=stride).sum())
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-6)


def test_mode_of_the_model_is_left_as_it_was(ids: np.ndarray) -> None:
    model = _Running().train()
    token_nats(model, ids, block_size=T)
    assert model.training


def test_impossible_stride_is_a_usage_error(ids: np.ndarray) -> None:
    with pytest.raises(UsageError, match="--stride 9"):
        token_nats(_Running(), ids, block_size=T, stride=9)


def test_score_of_text_adds_up() -> None:
    text = "abcabckjihgfedcba" * 5
    ids, context = _Letters().encode(text), _Letters().encode("abc")
    score = score_ids(Reader(_Running(), _Letters(), T), ids, context=context)
    nats = token_nats(_Running(), ids, context=context, block_size=T)
    assert score.nats_per_char == pytest.approx(nats.mean())
    assert score.bits_per_byte == pytest.approx(nats.mean() / np.log(2))
    assert score.perplexity == pytest.approx(np.exp(nats.mean()))
    assert (score.n_tokens, score.n_chars, score.n_bytes) == (85, 85, 85)
    assert score.ci95[0] < score.nats_per_char < score.ci95[1]
    assert score.char_position[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]


def test_damaged_weights_are_refused() -> None:
    model = _Running()
    with torch.no_grad():
        model.head.fill_(float("nan"))
    with pytest.raises(MiniGPTError, match="not finite"):
        score_text(Reader(model, _Letters(), T), "abcabc")


def test_nats_of_tokens_are_shared_over_the_characters_they_touch() -> None:
    text = "aé€b"  # 1, 2, 3 and 1 bytes
    pieces = [b"a" + "é".encode()[:1], "é".encode()[1:], "€".encode()[:1], "€".encode()[1:2], "€".encode()[2:] + b"b"]
    nats, begun_by = per_character([2.0, 1.0, 0.5, 0.25, 4.0], [len(p) for p in pieces], text.encode())
    assert nats.tolist() == [1.0, 2.0, 2.75, 2.0]
    assert begun_by.tolist() == [0, 0, 2, 4]


def test_tokens_that_do_not_spell_the_text_are_refused() -> None:
    with pytest.raises(MiniGPTError, match="changes the text"):
        per_character([1.0], [2], b"abc")


@pytest.mark.parametrize("ids", [[1, 2], [0], [0, 1], [0, 1, 2, 0, 1]])
def test_tokens_that_begin_or_end_inside_a_character_are_refused(ids: list[int]) -> None:
    euro = [bytes([byte]) for byte in "€".encode()]
    assert spelled(np.array([0, 1, 2]), euro) == "€"
    with pytest.raises(MiniGPTError, match="not whole UTF-8"):
        spelled(np.array(ids), euro)
