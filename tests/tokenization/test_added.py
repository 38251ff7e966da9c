"""Added tokens of character and byte tokenizers: what the library makes of their JSON, at the speed of the base."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from minigpt_cli.tokenization import added
from minigpt_cli.tokenization.added import AddedTokens
from minigpt_cli.tokenization.bpe import ByteTokenizer
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.pretrained import load_tokenizer

MARKS = ("<|a|>", "<|ab|>")
LETTERS = "abc<|>é\n"
PIECES = st.lists(st.sampled_from(MARKS) | st.text(LETTERS, max_size=5), max_size=12)


@pytest.fixture(params=["char", "byte"])
def tokenizer(request: pytest.FixtureRequest) -> AddedTokens:
    base = CharTokenizer([ord(c) for c in sorted(LETTERS)]) if request.param == "char" else ByteTokenizer()
    return AddedTokens(base, MARKS)


@pytest.mark.parametrize("text", ["", "abc", "<|a|>", "a<|a|>b<|ab|><|ab|>é", "<|a", "<|ab|>|>"])
def test_ids_and_text_are_those_of_the_library(text: str, tokenizer: AddedTokens) -> None:
    library = Library.from_str(tokenizer.to_json())
    ids = tokenizer.encode(text)
    assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text == b"".join(tokenizer.token_bytes()[i] for i in ids).decode()


@given(pieces=PIECES, batch=st.integers(1, 9))
def test_a_stream_is_its_pieces_one_after_the_other(pieces: list[str], batch: int) -> None:
    tokenizer = AddedTokens(ByteTokenizer(), MARKS)
    limit, added._BATCH = added._BATCH, batch
    try:
        streamed = [i for ids in tokenizer.encode_stream(pieces) for i in ids.tolist()]
    finally:
        added._BATCH = limit
    alone = [np.array([tokenizer._ids[p]]) if p in MARKS else tokenizer.base.encode(p) for p in pieces]
    assert streamed == [i for ids in alone for i in ids.tolist()]


def test_its_json_gives_it_back(tokenizer: AddedTokens) -> None:
    again = load_tokenizer(tokenizer.to_json())
    assert type(again) is AddedTokens
    assert again.to_json() == tokenizer.to_json()
    assert again.vocab_size == tokenizer.vocab_size == tokenizer.base.vocab_size + 2
