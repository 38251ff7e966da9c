"""Scores of the real architectures equal what others compute: a table look-up, transformers' loss, an explicit loop over bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minigpt_cli import registry
from minigpt_cli.config import ARCHITECTURES, BigramConfig, ClassicConfig, DataConfig, ModernConfig, MoEConfig
from minigpt_cli.data.encoding import prepared
from minigpt_cli.evaluation import scoring, windows
from minigpt_cli.evaluation.scoring import Reader, score_ids, token_nats
from minigpt_cli.models.contract import build_model
from minigpt_cli.tokenization.contract import end_of_text

TEXT = "Über den Wolken muß die Freiheit — grenzenlos sein. 자유 \U0001f600\n" * 40
V, T = 11, 8
CONFIGS = {
    "bigram": BigramConfig(block_size=T),
    "classic": ClassicConfig(block_size=T, n_layer=2, n_head=2, n_embd=16, dropout=0.3),
    "modern": ModernConfig(block_size=T, n_layer=2, n_head=2, n_embd=16, zero_init=False, init_std=0.5),
    "moe": MoEConfig(block_size=T, n_layer=2, n_head=2, n_embd=16, zero_init=False, init_std=0.5),
}


def small(arch: str) -> Any:
    """A small configuration of any architecture in the registry."""
    sizes = {"block_size": T, "n_layer": 2, "n_head": 2, "n_embd": 16}
    kind = ARCHITECTURES[arch]
    return CONFIGS.get(arch) or kind.model_validate({name: size for name, size in sizes.items() if name in kind.model_fields})


@pytest.mark.parametrize("arch", registry.ARCHITECTURES)
@pytest.mark.parametrize("stride", [0, 3])
def test_score_is_the_same_whatever_the_batch(arch: str, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(small(arch), V, seed=1)
    ids = np.random.default_rng(0).integers(0, V, 4 * T * 17 + 3)
    totals = []
    for tokens_in_batch in (T, 5 * T, 10**6):
        monkeypatch.setattr(windows, "_TOKENS", tokens_in_batch)
        totals.append(token_nats(model, ids, context=ids[:5], block_size=T, stride=stride).sum())
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("arch", ["classic", "modern", "moe"])
@pytest.mark.parametrize("stride", [0, 1, 3, T])
def test_a_masked_score_does_not_depend_on_the_document_before(arch: str, stride: int) -> None:
    end, ids = V - 1, np.random.default_rng(0).integers(0, V - 1, 5 * T)
    model = build_model(small(arch), V, seed=1)
    begins = 2 * T + 3  # inside a window
    ids[begins] = end
    changed = ids.copy()
    changed[:begins] = (changed[:begins] + 1) % end

    def nats(text: Any) -> Any:
        return token_nats(model, text, context=[end], block_size=T, stride=stride)[begins + 1 :]

    assert not np.array_equal(nats(ids)[: T // 2], nats(changed)[: T // 2])
    model.end_of_text = end  # type: ignore[assignment]
    assert np.array_equal(nats(ids), nats(changed))


@pytest.mark.parametrize("stride", [0, 3])
def test_positions_of_a_masked_score_are_counted_in_the_document(stride: int, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("anna\nbob\nclementine\n" * 20)
    dataset = prepared(DataConfig(source=str(tmp_path / "names.txt"), documents="lines"), tmp_path)
    model = build_model(CONFIGS["modern"], dataset.tokenizer.vocab_size, seed=1)
    model.end_of_text = end_of_text(dataset.tokenizer)  # type: ignore[assignment]
    score = scoring.score_split(scoring.Reader(model, dataset.tokenizer, T, stride), dataset, "val")
    assert score.parts is not None
    in_document = np.arange(score.n_chars) - np.repeat(score.parts.first, np.diff([*score.parts.first, score.n_chars])) + 1
    assert (score.char_position >= 1).all()
    assert (score.char_position <= np.minimum(in_document, T)).all()
    assert (score.char_position == np.minimum(in_document, T)).any()


def test_bigram_is_a_table_look_up() -> None:
    model = build_model(CONFIGS["bigram"], V, seed=1)
    (table,) = [p.detach().double() for p in model.parameters()]
    ids = np.random.default_rng(0).integers(0, V, 100)
    nats = -table.log_softmax(1)
    expected = [float(nats[a, b]) for a, b in zip([7, *ids], ids, strict=False)]
    assert token_nats(model, ids, context=[3, 7], block_size=T) == pytest.approx(expected, rel=1e-6)


def test_classic_is_the_loss_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from minigpt_cli.interchange.hf_weights import to_hf

    model = build_model(CONFIGS["classic"], V, seed=1)
    config, tensors = to_hf(CONFIGS["classic"], model.state_dict())
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    assert not theirs.load_state_dict(tensors, strict=False).missing_keys
    ids = np.random.default_rng(0).integers(0, V, 3 * T)
    stream = torch.tensor([5, *ids.tolist()])
    losses = []
    for start in range(0, len(ids), T):
        window = stream[start : start + T + 1][None]
        logits = theirs(window[:, :-1]).logits.double()
        losses += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="none").tolist()
    assert token_nats(model, ids, context=[5], block_size=T) == pytest.approx(losses, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_characters_equal_an_explicit_loop(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    dataset = prepared(DataConfig(source=str(tmp_path / "text.txt"), tokenizer=tokenizer, vocab_size=300), tmp_path)
    model = build_model(CONFIGS["modern"], dataset.tokenizer.vocab_size, seed=1)
    score = score_ids(Reader(model, dataset.tokenizer, T), dataset.val.tokens, context=dataset.train.tokens[-T:])
    nats = token_nats(model, dataset.val.tokens, context=dataset.train.tokens[-T:], block_size=T)
    text, pieces = score.text.decode(), dataset.tokenizer.token_bytes()
    owner = [i for i, character in enumerate(text) for _ in character.encode()]  # the character of each byte
    expected, at = [0.0] * len(text), 0
    for token, cost in zip(dataset.val.tokens.tolist(), nats.tolist(), strict=True):
        touched = sorted(set(owner[at : at + len(pieces[token])]))
        at += len(pieces[token])
        for character in touched:
            expected[character] += cost / len(touched)
    assert score.char_nats == pytest.approx(expected)
    assert score.char_nats.sum() == pytest.approx(nats.sum(), rel=1e-12)
    assert score.nats_per_char == pytest.approx(nats.sum() / len(text), rel=1e-12)
    assert score.text_sha256 == dataset.val.sha256
    assert (score.n_chars, score.n_bytes) == (dataset.val.n_chars, dataset.val.n_bytes)
    encode = dataset.tokenizer.encode
    again = score_ids(Reader(model, dataset.tokenizer, T), encode(text), context=encode(dataset.text("train")))
    if tokenizer != "bpe":  # whose tokens may differ where a text is cut
        assert again.nats_per_char == pytest.approx(score.nats_per_char, rel=1e-9)


def test_all_tokenizers_are_scored_on_the_same_characters(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    found = []
    for tokenizer in ("char", "byte", "bpe"):
        dataset = prepared(DataConfig(source=str(tmp_path / "text.txt"), tokenizer=tokenizer, vocab_size=300), tmp_path)
        model = build_model(CONFIGS["bigram"], dataset.tokenizer.vocab_size, seed=1)
        found.append(score_ids(Reader(model, dataset.tokenizer, T), dataset.val.tokens))
    assert len({score.text for score in found}) == 1
    assert len({len(score.char_nats) for score in found}) == 1
