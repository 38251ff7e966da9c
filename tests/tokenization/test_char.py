"""The character tokenizer's table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.errors import UsageError
from minigpt_cli.tokenization.char import CharTokenizer, code_points
from minigpt_cli.tokenization.contract import TrainingText


def test_ids_follow_code_point_order() -> None:
    tokenizer = CharTokenizer(TrainingText.of("b日a\n").alphabet)
    assert tokenizer.encode("\nab日").tolist() == [0, 1, 2, 3]


def test_unknown_characters_are_listed_once_each_and_a_few_of_them() -> None:
    tokenizer = CharTokenizer(TrainingText.of("abc").alphabet)
    with pytest.raises(UsageError, match=r"does not know 'x' \(U\+0078\) '日' \(U\+65E5\): "):
        tokenizer.encode("a日xx日")
    with pytest.raises(UsageError, match="and 18 more"):
        tokenizer.encode("defghijklmnopqrstuvwxyzABC")


@pytest.mark.parametrize("text", ["", "abc\x00\x7f", "é", "日本", "😀\U0010ffff"])
def test_code_points_are_those_of_the_text(text: str) -> None:
    assert code_points(text).tolist() == [ord(c) for c in text]


def test_the_highest_code_point_is_encoded() -> None:
    text = "\x00\U0010ffff"
    tokenizer = CharTokenizer(TrainingText.of(text).alphabet)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(np.array([1, 0], np.uint16)) == text[::-1]


letters = st.sampled_from("ab\x00\x7f\x80\xffŁé日😀\U0010ffff")


@given(st.text(letters, max_size=60), st.text(letters, max_size=3), st.sampled_from([0, 200, 300, 70_000]))
def test_ids_are_those_of_a_dictionary_however_many_and_whatever_the_share_of_ascii(text: str, other: str, more: int) -> None:
    """With `more` other characters before them in the vocabulary, ids of ASCII need more than a byte."""
    text = text + "ab" * 100 * (len(text) % 2)
    alphabet = [0x4E00 + i for i in range(more) if chr(0x4E00 + i) not in text and not 0xD800 <= 0x4E00 + i < 0xE000]
    alphabet += dict.fromkeys(map(ord, text))
    tokenizer, ids = CharTokenizer(alphabet), {point: i for i, point in enumerate(alphabet)}
    assert tokenizer.encode(text).tolist() == [ids[ord(c)] for c in text]
    assert [i for part in tokenizer.encode_stream([text[:9], text[9:]]) for i in part.tolist()] == [ids[ord(c)] for c in text]
    if unknown := {c for c in other if ord(c) not in ids}:
        with pytest.raises(UsageError, match="does not know") as raised:
            tokenizer.encode(text + other)
        assert all(f"U+{ord(c):04X}" in str(raised.value) for c in unknown)
