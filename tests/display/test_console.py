"""What reaches a terminal: no escape sequence of a stranger's, no NaN in JSON, one line where one was promised."""

from __future__ import annotations

import contextlib
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli import escaping
from minigpt_cli.display import console


def test_json_has_null_for_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    console.write_json({"a": [math.nan, math.inf, 1.5], "b": {"c": -math.inf}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, None, 1.5], "b": {"c": None}}


@given(st.text())
def test_json_has_no_control_characters_and_loses_nothing(text: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        console.write_json({"text": text})
    assert escaping.printable(out.getvalue()) == out.getvalue()
    assert json.loads(out.getvalue()) == {"text": text}


def test_csv_is_raw_for_a_program_and_harmless_for_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for person, shown in ((False, "a,\x1b[2J\n"), (True, "a,\\x1b[2J\n")):
        monkeypatch.setattr(console, "is_terminal", lambda stream, answer=person: answer)
        console.write_rows("a,\x1b[2J")
        assert capsys.readouterr().out == shown


@pytest.mark.parametrize("width", [40, 60])
def test_notices_break_between_words_on_a_terminal(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    words = "evaluations draw three batches of each split, to be quick; the best is scored on all of it at the end"
    for say, begin in ((console.notice, "text        "), (console.error, ""), (console.warn, "")):
        say(begin + words)
        lines = capsys.readouterr().err.splitlines()
        assert max(map(len, lines)) <= width
        assert " ".join(" ".join(lines).split()).endswith(words)
        assert {len(line) - len(line.lstrip()) for line in lines[1:]} == {len(begin) or 2}


def test_words_say_which_stream_they_belong_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console.write("result")
    console.notice("notice\x1b[0m\nmore")
    console.warn("careful")
    console.error("wrong")
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err == "notice\\x1b[0m more\nWarning: careful\nError: wrong\n"
