"""Numbers and words as people read them."""

from __future__ import annotations

import shlex

import pytest

from minigpt_cli.display import format


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (795_321, "795 k"), (10_700_000, "10.7 M"), (124_000_000, "124 M"), (999_999, "1 M")],
)
def test_counts_have_three_digits_and_a_unit(n: int, text: str) -> None:
    assert format.count(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "0:10"), (59.6, "1:00"), (187, "3:07"), (3849, "1:04:09")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert format.duration(seconds) == text


@pytest.mark.parametrize("text", ["plain", "two words", 'a "quoted" one', "$HOME", "`date`", "it's", "a\\b", "bang!", "", "漢字", "-x"])
def test_a_quoted_word_is_one_word_again(text: str) -> None:
    assert shlex.split(format.quoted(text)) == [text]
