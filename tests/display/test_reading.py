"""The report of what was read: three lines that show a wrong text before time is spent on it."""

from __future__ import annotations

from pathlib import Path

from minigpt_cli.config import DataConfig
from minigpt_cli.data.encoding import prepared
from minigpt_cli.display.reading import reading_report


def report(folder: Path) -> list[str]:
    return reading_report(prepared(DataConfig(source=str(folder)), folder.parent / "data"))


def test_the_first_words_of_both_splits_are_shown(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Once upon a time there was a king.\n" * 90 + "Notes: buy milk and honey today.\n" * 10)
    text, training, validation = report(tmp_path / "text")
    assert "characters" in text
    assert "“Once upon a time there was a king." in training
    assert "buy milk and honey" in validation


def test_the_report_names_encodings_other_than_utf_8_and_how_to_choose(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(("Größe " * 50).encode("utf-16"))
    (tmp_path / "text" / "b.html").write_bytes(b"<meta charset=windows-1251><p>" + "Вот страница. ".encode("cp1251") * 20)
    (tmp_path / "text" / "c.txt").write_text("Größe " * 50, encoding="utf-8")
    text = report(tmp_path / "text")[0]
    assert "; 300 characters read as utf-16;" in text  # which its mark says
    assert "279 characters read as windows-1251 (--encoding reads them as another)" in text
    assert "utf-8" not in text.lower()


def test_the_report_tells_line_ends_and_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"one line\r\n" * 200)
    (tmp_path / "text" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    (text, *others) = report(tmp_path / "text")
    assert "as on Windows" in text
    assert "left out: 1 × PNG image" in text
    assert all("\r" not in line and "\n" not in line for line in others)
