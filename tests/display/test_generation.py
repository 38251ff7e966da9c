"""Generated text on a terminal and in a pipe."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from minigpt_cli.display import console
from minigpt_cli.display.generation import ShownToken, TextStreamer, band, print_probabilities


def test_probabilities_show_a_character_split_over_tokens_whole(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = zip("€".encode(), ("", "", "€"), strict=True)
    print_probabilities("5", [ShownToken(f"bytes:\\x{byte:02x}", text, 0.5, []) for byte, text in pieces], listed=True)
    _, *rows, text, _ = capsys.readouterr().out.splitlines()
    assert text == "5€"
    assert [row.split()[0] for row in rows] == ["\\xe2", "\\x82", "\\xac"]


def test_only_the_prompt_is_dim_and_alternatives_are_listed_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    print_probabilities("To be", [ShownToken("x", "x", 0.9, [("x", 0.9), ("y", 0.1)])])
    text, legend = stream.getvalue().splitlines()
    assert text == f"\x1b[2mTo be\x1b[0m\x1b[38;5;{band(0.9)}mx\x1b[0m"
    assert "--alternatives" in legend


def test_probability_bands_cover_all() -> None:
    assert len({band(p) for p in np.linspace(0, 1, 101)}) == 5


def test_control_characters_are_written_out_on_a_terminal_and_raw_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "a\x1b[2Jb\x07\u202e"
    for terminal, expected in ((False, hostile), (True, "a\\x1b[2Jb\\x07\\u202e")):
        stream = io.StringIO()
        monkeypatch.setattr(console, "is_terminal", lambda _, terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        TextStreamer().text(hostile)
        assert stream.getvalue() == expected


def test_the_prompt_is_dim_on_a_terminal_unless_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda _: True)
    for no_color, expected in (("", "\x1b[2mTo be\x1b[0m or"), ("1", "To be or")):
        monkeypatch.setenv("NO_COLOR", no_color)
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stdout", stream)
        out = TextStreamer()
        out.prompt("To be")
        out.text(" or")
        assert stream.getvalue() == expected
