"""What reaches a terminal: no escape sequence of a stranger's, no NaN in JSON, one line where one was promised."""

from __future__ import annotations

import contextlib
import io
import json
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli import escaping
from minigpt_cli.display import console, format


@given(st.text())
def test_no_control_character_is_printable(text: str) -> None:
    shown = escaping.printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in shown)
    assert escaping.printable(shown) == shown
    shown.encode("utf-8")


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x9b31m", "\x07", "\r", "\u202egnp.exe", "\u2066x\u2069", "\x00", "\ud800"])
def test_what_moves_or_hides_is_written_out(hostile: str) -> None:
    assert hostile[0] not in escaping.printable(f"a{hostile}b")


def test_ordinary_text_of_any_script_stays() -> None:
    text = "naïve — 東京 🙂 می‌خواهم\n\ttab"
    assert escaping.printable(text) == text


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(escaping.one_line(text).splitlines()) <= 1


def test_json_has_null_for_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    console.write_json({"a": [math.nan, math.inf, 1.5], "b": {"c": -math.inf}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, None, 1.5], "b": {"c": None}}


@given(st.text())
def test_json_commands_no_terminal_and_loses_nothing(text: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        console.write_json({"text": text})
    assert escaping.printable(out.getvalue()) == out.getvalue()
    assert json.loads(out.getvalue()) == {"text": text}


def test_csv_is_raw_for_a_program_and_harmless_for_a_person(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for person, shown in ((False, "a,\x1b[2J\n"), (True, "a,\\x1b[2J\n")):
        monkeypatch.setattr(console, "is_terminal", lambda stream, answer=person: answer)
        console.write_rows("a,\x1b[2J")
        assert capsys.readouterr().out == shown


def test_words_say_which_stream_they_belong_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console.write("result")
    console.notice("notice\x1b[0m\nmore")
    console.warn("careful")
    console.error("wrong")
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err == "notice\\x1b[0m more\nWarning: careful\nError: wrong\n"


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
