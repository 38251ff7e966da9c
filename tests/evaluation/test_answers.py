"""Only the answers of conversations are scored, and every score equals a plain loop, whatever the tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt_cli.config import BigramConfig, DataConfig
from minigpt_cli.data import chat
from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation import cache
from minigpt_cli.evaluation.baselines import baselines
from minigpt_cli.evaluation.cache import ScoreKey
from minigpt_cli.evaluation.comparison import KINDS, Side, by_kind, by_position, check_same_text, most_different
from minigpt_cli.evaluation.scores import PartsScored, Score, make_score
from minigpt_cli.evaluation.scoring import Reader, score_text, token_nats
from minigpt_cli.models.contract import build_model
from minigpt_cli.tokenization.bpe import BPETokenizer, ByteTokenizer
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import Tokenizer, TrainingText
from minigpt_cli.tokenization.pretrained import with_added_tokens

T = 16
CHATS = [
    [("user", "two and two?"), ("assistant", "four")],
    [("system", "be brief"), ("user", "hi"), ("assistant", ""), ("user", "näh"), ("assistant", "yo 漢🙂"), ("user", "bye")],
    [("user", "a"), ("assistant", "b"), ("assistant", "")],
]
WHOLE = "".join(map(chat.templated, CHATS))
ANSWERS = [content for messages in CHATS for role, content in messages if role == "assistant"]
BUILDERS = {"byte": ByteTokenizer, "char": CharTokenizer, "bpe": BPETokenizer}


def tokenizer(name: str) -> Tokenizer:
    return with_added_tokens(BUILDERS[name].build(DataConfig(vocab_size=260, min_pair_freq=1), TrainingText.of(WHOLE)), chat.TOKENS)  # type: ignore[attr-defined]


def model_of(words: Tokenizer) -> torch.nn.Module:
    model = build_model(BigramConfig(block_size=T), words.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("name", BUILDERS)
def test_answers_cost_what_a_plain_loop_says(name: str) -> None:
    words = tokenizer(name)
    score = score_text(Reader(model_of(words), words, T), WHOLE, in_parts=True)
    ids = words.encode(WHOLE)
    marks = chat.token_ids(words) or {}
    nats = token_nats(model_of(words), ids, block_size=T)
    total, count, speaking, costs = 0.0, 0, False, []
    for token, cost in zip(ids.tolist(), nats.tolist(), strict=True):
        if speaking and (token not in marks.values() or token == marks[chat.END]):
            total, count = total + cost, count + 1
            costs[-1] += cost
        if token in marks.values():
            speaking = token == marks["<|assistant|>"]
            costs += [0.0] if speaking else []
    chars = sum(map(len, ANSWERS))
    assert (score.n_tokens, score.n_chars, score.n_answers) == (count, chars, len(ANSWERS))
    assert (score.n_bytes, score.text.decode()) == (len("".join(ANSWERS).encode()), "".join(ANSWERS))
    assert score.nats_per_token == pytest.approx(total / count)
    assert score.nats_per_char == pytest.approx(total / chars)
    assert score.char_nats.mean() == pytest.approx(score.nats_per_char)
    assert score.ci95[0] < score.nats_per_char < score.ci95[1]
    assert score.text_sha256 == hashlib.sha256(WHOLE.encode()).hexdigest()
    assert score.parts is not None
    assert score.parts.first.tolist() == np.cumsum([0, *map(len, ANSWERS[:-1])]).tolist()
    assert score.char_nats[:4].sum() == pytest.approx(costs[0] + costs[1])  # an empty answer's end is on the last character before it
    assert score.lines() == "".join(answer + "\n" for answer in ANSWERS)


def test_answers_without_any_text_are_refused() -> None:
    words = tokenizer("byte")
    with pytest.raises(UsageError, match="hold no text"):
        score_text(Reader(model_of(words), words, T), chat.templated([("user", "a"), ("assistant", "")]), in_parts=True)


def test_a_plain_text_is_scored_whole_even_where_it_holds_the_marks() -> None:
    words = tokenizer("byte")
    score = score_text(Reader(model_of(words), words, T), WHOLE)
    assert (score.n_chars, score.n_answers) == (len(WHOLE), None)
    answers = score_text(Reader(model_of(words), words, T), WHOLE, in_parts=True)
    with pytest.raises(UsageError, match="different texts"):
        check_same_text([Side("a", (score,)), Side("b", (answers,))])


@pytest.fixture
def score() -> Score:
    nats = np.random.default_rng(0).exponential(1.5, 1200).astype(np.float32).astype(np.float64)
    answers = np.arange(0, 1200, 4)
    return make_score(nats, nats, np.arange(1200) % 8 + 1, b"meow" * 300, parts=PartsScored("answers", answers), text_sha256="c" * 64)


def test_kinds_and_passages_see_where_answers_begin(score: Score) -> None:
    worse = dataclasses.replace(score, char_nats=score.char_nats + np.where(np.arange(1200) // 40 == 7, 1.0, 0.0))
    sides = [Side("a", (score,)), Side("b", (worse,))]
    assert {part.name: part.share for part in by_kind(sides, score.text.decode())} == {KINDS[0]: 0.25, KINDS[1]: 0.75}
    assert sum(part.share * part.nats_per_char[0] for part in by_position(sides)) == pytest.approx(score.nats_per_char)
    (passage,) = most_different(*sides, score.text.decode(), length=40)
    assert passage.text == "\n".join(["meow"] * 10)
    assert len(passage.differences) == len(passage.text)
    assert passage.delta == pytest.approx(-1)


def test_kept_answers_come_back_and_are_not_mistaken_for_the_whole_text(tmp_path: Path, score: Score) -> None:
    key = ScoreKey("w" * 64, "c" * 64, scored="answers")
    cache.keep(tmp_path, key, score)
    assert cache.find(tmp_path, dataclasses.replace(key, scored="")) is None
    found = cache.find(tmp_path, key)
    assert found is not None
    for field in dataclasses.fields(Score):
        if field.name != "parts":
            assert np.array_equal(getattr(found, field.name), getattr(score, field.name)), field.name
    assert found.parts is not None
    assert found.parts.kind == "answers"
    assert found.parts.first.tolist() == list(range(0, 1200, 4))
    for answers in (np.array([5, 2]), np.array([-1]), np.array([1201]), np.array([0.5]), np.array([[0]])):
        cache.keep(tmp_path, key, dataclasses.replace(score, parts=PartsScored("answers", answers)))
        assert cache.find(tmp_path, key) is None
    cache.keep(tmp_path, key, dataclasses.replace(score, text=score.text[:-1]))
    assert cache.find(tmp_path, key) is None


def test_a_key_of_a_whole_text_is_what_it_was_before_there_were_conversations() -> None:
    key = ScoreKey("w", "t", "b", 3)
    assert key.to_json() == '{"before_sha256": "b", "precision": "fp32", "stride": 3, "text_sha256": "t", "weights_sha256": "w"}'


def test_baselines_pay_for_the_ends_of_answers_over_the_characters_of_answers() -> None:
    lines, chars = baselines("ab\nba\n" * 9, "ab\nbb\n"), baselines("ab\nba\n" * 9, "ab\nbb\n", n_chars=4)
    for name, value in dataclasses.asdict(lines).items():
        assert getattr(chars, name) == pytest.approx(value * 6 / 4)


def test_a_word_s_perplexity_counts_blanks_and_line_ends_as_published_figures_do() -> None:
    text = b" the cat sat \n on it \n"
    nats = np.full(len(text), 0.25)
    score = make_score(nats, nats, np.zeros(len(text), np.int64), text)
    assert score.perplexity_per_word == pytest.approx(np.exp(0.25 * len(text) / (5 + 2)))
