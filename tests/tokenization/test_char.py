"""The character tokenizer's table."""

from __future__ import annotations

import numpy as np
import pytest

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
