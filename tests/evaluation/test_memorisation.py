"""The automaton finds the same copies as a plain search."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.evaluation.memorisation import copied_lengths, copies

short = st.text("ab", max_size=12)


@given(st.lists(short, max_size=4), st.lists(short, max_size=4))
def test_lengths_equal_a_search(texts: list[str], training: list[str]) -> None:
    whole = "".join(training)
    expected = [max(n for n in range(end + 1) if text[end - n : end] in whole) for text in texts for end in range(1, len(text) + 1)]
    assert copied_lengths(texts, training).tolist() == expected


def test_longest_copy_is_shown() -> None:
    found = copies(["xx to be or not yy", "qq"], ["... to be or ", "not to be"])
    assert (found.longest, found.longest_text) == (14, " to be or not ")


def test_nothing_copied_is_zero() -> None:
    assert copies(["xyz"], ["abc"]).longest == 0
    assert copies([], ["abc"]).mean == 0


def test_work_is_linear_in_the_training_text() -> None:
    rng = random.Random(0)
    text = "".join(rng.choices("abcd", k=40_000))
    lengths = copied_lengths([text[1000:1500]], [text])
    assert lengths.tolist()[-1] == 500
