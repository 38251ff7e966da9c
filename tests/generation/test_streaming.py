"""Streamed text is the whole text, cut so that no character is broken and no stop string shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.generation.streaming import StopStrings, TextStream

BYTES = [bytes([b]) for b in range(256)]


@given(st.text(max_size=40))
def test_byte_tokens_stream_as_whole_characters(text: str) -> None:
    stream, pieces = TextStream(BYTES), []
    for byte in text.encode("utf-8", "surrogatepass") if text.isascii() else text.encode("utf-8", "replace"):
        pieces.append(stream.push(byte))
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces) or "\N{REPLACEMENT CHARACTER}" in text
    assert "".join(pieces) + stream.finish() == text.encode("utf-8", "replace").decode()


def test_a_character_is_held_until_whole() -> None:
    stream = TextStream(BYTES)
    assert [stream.push(b) for b in "a€b".encode()] == ["a", "", "", "€", "b"]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    stream = TextStream(BYTES)
    assert stream.push("€".encode()[0]) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


@given(
    st.text("ab.", max_size=30),
    st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), max_size=30),
)
def test_stop_strings_are_found_wherever_the_pieces_are_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """The same as searching the text after every character: the first stop string to be complete ends it."""
    expected, hit = text, False
    for end in range(len(text) + 1):
        found = [text[:end].find(s) for s in stops if s in text[:end]]
        if found:
            expected, hit = text[: min(found)], True
            break
    whole = StopStrings(stops)
    out, stopped = "", None
    for character in text:
        piece, stopped = whole.push(character)
        out += piece
        if stopped:
            break
    assert (out if stopped else out + whole.flush()) == expected
    assert (stopped is not None) == hit
    assert stopped in [None, *stops]
    rough, position, shown = StopStrings(stops), 0, ""
    for size in [*cuts, len(text) + 1]:
        piece, stopped = rough.push(text[position : position + size])
        shown, position = shown + piece, position + size
        if stopped:
            break
    shown = shown if stopped else shown + rough.flush()
    assert (stopped is not None) == hit
    assert not any(s in shown for s in stops)
    assert text.startswith(shown)


def test_text_that_may_become_a_stop_string_is_held() -> None:
    stops = StopStrings(["END"])
    assert [stops.push(c) for c in "aENb"] == [("a", None), ("", None), ("", None), ("ENb", None)]
    assert [stops.push(c) for c in "END"] == [("", None), ("", None), ("", "END")]


def test_stream_stops_across_tokens() -> None:
    stream = TextStream([b"To ", b"be", b"\n", b"\nNext"], ["\n\n"])
    assert [stream.push(0), stream.push(1), stream.push(2)] == ["To ", "be", ""]
    assert stream.push(3) == ""
    assert stream.stopped == "\n\n"
    assert stream.finish() == ""
