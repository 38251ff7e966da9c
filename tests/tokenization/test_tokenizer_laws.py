"""What every tokenizer of the registry promises, and its Hugging Face JSON with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt_cli import registry
from minigpt_cli.config import DataConfig
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.tokenization import segments as segments_module
from minigpt_cli.tokenization.contract import Spelling, Tokenizer, TrainingText
from minigpt_cli.tokenization.pretrained import GPT2_DIR, load_tokenizer

TEXT = "The cat sat on the mat.\r\n\tDon't — naïve façade, 日本語 😀 e\u0301 \x00\ufeff 12345   \n\n" * 20
LETTERS = st.sampled_from(sorted(set(TEXT)))
ANY = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)
FROM_TEXT = st.text(alphabet=LETTERS, max_size=80)
LAWS = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=list(registry.TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "gpt2":
            patch.setenv(GPT2_DIR, str(request.getfixturevalue("shared_data") / "gpt2"))
        text = replace(TrainingText.of(TEXT), train_text=lambda: iter([TEXT]))
        made: Tokenizer = registry.load("tokenizer", request.param).build(DataConfig(vocab_size=300), text)
    assert made.name == request.param
    return made


@LAWS
@given(FROM_TEXT)
def test_decoding_gives_back_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@LAWS
@given(FROM_TEXT, st.integers(1, 9))
def test_text_read_in_pieces_is_the_text_wherever_a_character_is_cut(tokenizer: Tokenizer, text: str, at_once: int) -> None:
    ids = tokenizer.encode(text)
    blocks = (ids[start : start + at_once] for start in range(0, len(ids), at_once))
    assert "".join(Spelling(tokenizer.token_bytes()).pieces(blocks)) == text


@LAWS
@given(ANY)
def test_any_unicode_comes_back_or_is_refused_by_name(tokenizer: Tokenizer, text: str) -> None:
    if tokenizer.name == "char" and (unknown := set(text) - set(TEXT)):
        with pytest.raises(UsageError, match=f"U\\+{ord(min(unknown)):04X}"):
            tokenizer.encode(text)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_json())


@LAWS
@given(FROM_TEXT)
def test_the_json_gives_the_same_ids_in_the_library(tokenizer: Tokenizer, library: tokenizers.Tokenizer, text: str) -> None:
    ids = library.encode(text, add_special_tokens=False).ids
    assert ids == tokenizer.encode(text).tolist()
    assert library.decode(ids, skip_special_tokens=False) == text


@LAWS
@given(FROM_TEXT)
def test_token_bytes_join_to_the_utf8_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    of_id = tokenizer.token_bytes()
    assert len(of_id) == tokenizer.vocab_size
    assert b"".join(of_id[i] for i in tokenizer.encode(text)) == text.encode("utf-8")


@LAWS
@given(FROM_TEXT, st.integers(0, 80))
def test_a_stream_gives_the_ids_of_the_whole(tokenizer: Tokenizer, text: str, place: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments_module, "LIMIT", 7)
        whole = tokenizer.encode(text).tolist()
        streamed = [i for ids in tokenizer.encode_stream([text[:place], text[place:]]) for i in ids.tolist()]
    assert streamed == whole


def test_ids_are_unsigned_and_within_the_vocabulary(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.uint32
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([]) == ""


def test_ids_of_another_tokenizer_are_refused(tokenizer: Tokenizer) -> None:
    for wrong in ([tokenizer.vocab_size], [-1], [0, 1 << 40]):
        with pytest.raises(MiniGPTError, match="do not fit a vocabulary"):
            tokenizer.decode(wrong)


def test_a_saved_tokenizer_reopens_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    for source in (tmp_path / "tokenizer.json", tmp_path, tokenizer.to_json()):
        again = load_tokenizer(source, tokenizer.name)
        assert type(again).__name__ == type(tokenizer).__name__ or tokenizer.name in ("bpe", "gpt2")
        assert again.name == tokenizer.name
        assert json.loads(again.to_json()) == json.loads(tokenizer.to_json())
        assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
        assert again.token_bytes() == tokenizer.token_bytes()


def test_half_of_a_surrogate_pair_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"^character 3 of the text is half of a surrogate pair \(U\+DCFF\): give UTF-8$"):
        tokenizer.encode("the\udcff")


def test_a_million_characters_on_one_line(tokenizer: Tokenizer) -> None:
    for text in ("a" * 1_000_000, "cat the " * 125_000):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
