"""Segments of a text depend on the text alone, and never change its tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.tokenization import segments as module
from minigpt_cli.tokenization.segments import segments

TEXTS = st.text(alphabet=st.sampled_from("ab  ,.\n'é日1") | st.characters(codec="utf-8"), max_size=200)


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 16)


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


@given(TEXTS, st.lists(st.integers(0, 10_000)))
def test_segments_do_not_depend_on_how_the_text_was_read(text: str, places: list[int]) -> None:
    assert list(segments(cut(text, places))) == list(segments([text]))


@given(TEXTS)
def test_segments_join_to_the_text_within_the_limit(text: str) -> None:
    found = list(segments([text]))
    assert "".join(found) == text
    assert all(0 < len(segment) <= 16 for segment in found)


@given(TEXTS)
def test_a_segment_is_its_own_segment(text: str) -> None:
    for segment in segments([text]):
        assert list(segments([segment])) == [segment]


ENDS = ["<end>", "[a b]"]


@given(st.lists(st.sampled_from(["<end>", "[a b]", "ab", "a", " ", "<e", "日"]), max_size=60), st.lists(st.integers(0, 10_000)))
def test_an_added_token_is_never_cut(parts: list[str], places: list[int]) -> None:
    text = "".join(parts)
    found = list(segments([text], added=ENDS))
    assert "".join(found) == text
    assert all(0 < len(segment) <= 16 for segment in found)
    assert all(sum(segment.count(end) for segment in found) == text.count(end) for end in ENDS)
    assert list(segments(cut(text, places), added=ENDS)) == found


def test_cuts_fall_before_the_space_after_a_letter() -> None:
    assert list(segments(["one two three four"])) == ["one two three", " four"]


def test_cuts_fall_before_other_marks_where_there_is_no_space() -> None:
    assert list(segments(["日本語日本語。日本語日本語日本語日"])) == ["日本語日本語", "。日本語日本語日本語日"]


def test_a_word_longer_than_the_limit_is_cut_at_the_limit() -> None:
    assert list(segments(["a" * 40])) == ["a" * 16, "a" * 16, "a" * 8]


def test_contractions_and_line_breaks_stay_with_what_is_before_them() -> None:
    assert not set("'’\n\r") & module._BREAKS
