"""How a text could be cut, estimated from a sample of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.training import vocabularies
from minigpt_cli.training.vocabularies import SIZES, cut_s, parts, possible, present


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Of a text of 300,000 characters with words as common as in a language."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(1, 8))) for _ in range(800)]
    chosen = rng.zipf(1.3, 100_000)
    text = " ".join(words[i % len(words)] for i in chosen)[:300_000]
    (tmp_path / "text.txt").write_text(text)
    return RunConfig(data=DataConfig(source=str(tmp_path / "text.txt"))).changed(optim={"time_budget": 60.0})


def data_of(config: RunConfig, tmp_path: Path) -> Dataset:
    return prepared(config.data, tmp_path / "data")


def test_the_tokens_of_byte_pairs_are_foretold(config: RunConfig, tmp_path: Path) -> None:
    texts = {text.vocab_size: text for text in possible(config, (), data_of(config, tmp_path)) if text.tokenizer == "bpe"}
    assert tuple(texts) == SIZES
    for size in SIZES[:2]:
        real = data_of(config.changed(data={"tokenizer": "bpe", "vocab_size": size}), tmp_path)
        assert texts[size].train_tokens == pytest.approx(len(real.train.tokens), rel=0.03)
        assert texts[size].val_tokens == pytest.approx(len(real.val.tokens), rel=0.03)


@pytest.mark.parametrize("given", ["tokenizer", "vocab_size"])
def test_a_tokenizer_that_is_given_stays(given: str, config: RunConfig, tmp_path: Path) -> None:
    assert [text.tokenizer for text in possible(config, [given], data_of(config, tmp_path))] == ["char"]


def test_the_vocabulary_of_byte_pairs_is_planned_where_its_size_was_not_given(config: RunConfig, tmp_path: Path) -> None:
    pairs = config.changed(data={"tokenizer": "bpe"})
    free, asked = (possible(pairs, given, data_of(pairs, tmp_path)) for given in ((), ("tokenizer",)))
    assert [(text.vocab_size, text.is_cut) for text in asked] == [(size, size == pairs.data.vocab_size) for size in SIZES]
    assert [t.gain for t in asked] == pytest.approx([t.gain for t in possible(config, (), data_of(config, tmp_path))[1:]], rel=0.01)
    assert [text.data for text in free] == [{}]  # token files, or a preset, chose it
    fixed = possible(pairs, ("tokenizer", "vocab_size"), data_of(pairs, tmp_path))
    assert [(text.vocab_size, text.data) for text in fixed] == [(pairs.data.vocab_size, {})]


def test_a_budget_that_learning_byte_pairs_would_eat_keeps_characters(config: RunConfig, tmp_path: Path) -> None:
    short = config.changed(optim={"time_budget": 0.3})
    assert [text.tokenizer for text in possible(short, (), data_of(config, tmp_path))] == ["char"]


def test_of_a_text_too_large_for_the_budget_a_part_can_be_cut() -> None:
    assert parts(90_000, 10_000, 20) == [0]
    assert parts(90_000_000, 10_000_000, 60) == [0, 22_000_000, 5_600_000]
    assert parts(90_000_000, 10_000_000, 20) == [5_600_000]
    large = parts(900_000_000, 100_000_000, 60)
    assert large == sorted(large, reverse=True) != []
    assert all(0 < cut_s(n, 100_000_000, SIZES[-1]) <= 0.35 * 60 for n in large)
    assert parts(900_000_000, 100_000_000, 10) == []


def test_parts_have_fewer_tokens_of_the_same_kind(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "_FEWEST_OF_PART", 20_000)
    data = data_of(config, tmp_path)
    pairs = [text for text in possible(config, (), data) if text.vocab_size == SIZES[0]]
    assert [text.max_chars for text in pairs] == [0, 68_000]
    whole, part = pairs
    assert (part.val_tokens, part.chars_per_token, part.gain) == (whole.val_tokens, whole.chars_per_token, whole.gain)
    assert part.prepared_s < whole.prepared_s
    cut = data_of(config.changed(data=part.data), tmp_path)
    assert (cut.train.n_chars, cut.val.sha256) == (68_000, data.val.sha256)
    assert part.train_tokens == pytest.approx(len(cut.train.tokens), rel=0.05)
    assert {text.max_chars for text in possible(config, ("max_chars",), data)} == {0}


def test_byte_pairs_win_where_words_return_and_not_in_random_letters(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("".join(np.random.default_rng(0).choice(list("etaoinshrdlu "), 100_000)))
    letters = config.changed(data={"source": str(tmp_path / "letters.txt")})
    words, noise = ([text.gain for text in possible(c, (), data_of(c, tmp_path))] for c in (config, letters))
    assert words[0] == noise[0] == 1.0
    assert min(words[1:]) > 1.3
    assert max(noise) < 1.02


def test_byte_pairs_are_not_offered_where_each_character_is_several_bytes(config: RunConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "signs.txt").write_text("".join(chr(0x4E00 + n) for n in rng.zipf(1.2, 90_000) % 3000), encoding="utf-8")
    signs = config.changed(data={"source": str(tmp_path / "signs.txt")})
    assert [text.tokenizer for text in possible(signs, (), data_of(signs, tmp_path))] == ["char"]


def test_texts_too_short_to_measure_keep_characters(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a tale of two words " * 50)
    short = config.changed(data={"source": str(tmp_path / "short.txt")})
    assert [text.tokenizer for text in possible(short, (), data_of(short, tmp_path))] == ["char"]


@pytest.mark.parametrize(("kinds", "letters"), [(22, 1.0), (22 * 22, 2.0)])
def test_a_sign_of_many_kinds_holds_several_letters(kinds: int, letters: float, config: RunConfig, tmp_path: Path) -> None:
    signs = np.random.default_rng(0).integers(0, kinds, 90_000)
    (tmp_path / "signs.txt").write_text("".join(chr(0x4E00 + n) for n in signs), encoding="utf-8")
    given = config.changed(data={"source": str(tmp_path / "signs.txt")})
    assert present(data_of(given, tmp_path)).letters == pytest.approx(letters, abs=0.02)


def test_byte_pairs_that_already_are_few_tokens_stay(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a" * 50_000)
    given = config.changed(data={"source": str(tmp_path / "one.txt"), "tokenizer": "bpe"})
    data = data_of(given, tmp_path)
    assert len(data.train.tokens) < 1000
    assert possible(given, ("tokenizer",), data) == [present(data)]
