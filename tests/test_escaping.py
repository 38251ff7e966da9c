"""One function for each medium: what a stranger wrote commands nothing there, and ordinary words stay what they are."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli import escaping


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


def test_words_stay_what_they_are_in_every_medium() -> None:
    for text in (
        "modern-1",
        "p1_base",
        "Zürich",
        "naïve é",
        "lr=1e-4",
        "漢字",
        "می‌خواهم",
        "a b",
        "text.txt",
        "±0.0012 (95 %: 1 to 2; p < 0.0005)",
    ):
        assert escaping.printable(text) == escaping.one_line(text) == escaping.csv_cell(text) == text
        assert escaping.markdown(text).replace("\\_", "_") == text
        assert escaping.markdown_code(text) == f"`{text}`"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a|b", r"a\|b"), ("*a*", r"\*a\*"), ("<b>", r"\<b>"), ("a < b", "a < b"), ("&lt;", r"\&lt;"), ("# a", r"\# a"), ("1. a", r"1\. a"),
     ("- a", r"\- a"), ("a\nb", "a b"), ("[a](b)", r"\[a\](b)"), ("\x1b[2J", r"\\x1b\[2J"), ("$x$", r"\$x\$"), ("a\\|b", r"a\\\|b")],
)  # fmt: skip
def test_markdown_is_plain_words(text: str, shown: str) -> None:
    assert escaping.markdown(text) == shown.replace(r"\\x1b", r"\\x1b")


@pytest.mark.parametrize(("text", "shown"), [("2.7898", "2.7898"), ("#", "#"), ("1. a|b_c", r"1. a\|b\_c"), ("-0.1", "-0.1")])
def test_numbers_in_a_markdown_table_stay_numbers(text: str, shown: str) -> None:
    assert escaping.markdown_cell(text) == shown


@pytest.mark.parametrize("text", ["`", "``a``", "a`b", "", "`a"])
def test_code_in_markdown_ends_where_it_should(text: str) -> None:
    shown = escaping.markdown_code(text)
    fence = re.match("`+", shown)
    assert fence is not None
    assert shown.endswith(fence[0])
    assert not re.search(f"(?<!`){fence[0]}(?!`)", shown[len(fence[0]) : -len(fence[0])])


@pytest.mark.parametrize(
    ("value", "cell"),
    [("=1+1", "'=1+1"), ("+a", "'+a"), ("-a", "'-a"), ("@a", "'@a"), ("\ta", "'\ta"), (" =1", "' =1"), ("-1.5", "-1.5"), ("-1 +2", "-1 +2"),
     (-1.5, -1.5), (None, ""), (True, True), ("-", "'-"), ("a=1", "a=1")],
)  # fmt: skip
def test_cells_are_no_formulas(value: object, cell: object) -> None:
    assert escaping.csv_cell(value) == cell


@pytest.mark.parametrize("text", ["../../etc/passwd", "a\nSYSTEM x", "", "...", "-rf", "a/b", "\x00", "é" * 300, ".hidden", "x" * 500])
def test_file_names_are_plain(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", escaping.file_name(text))


def test_html_is_text() -> None:
    assert escaping.html("<a href='x'>\x1b\u202e\"") == r"&lt;a href=&#x27;x&#x27;&gt;\x1b\u202e&quot;"


def test_towers_of_accents_are_cut_down() -> None:
    assert escaping.printable("Z" + "\u0301" * 6) == "Z" + "\u0301" * 4 + r"\u0301\u0301"
    assert escaping.printable("q\u0323\u0307") == "q\u0323\u0307"
