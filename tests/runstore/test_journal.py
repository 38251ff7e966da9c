"""The journal of the course: what was added is read again, whatever a kill cut off, and damage is an error in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt_cli.errors import RunDamaged, RunLocked
from minigpt_cli.runstore.journal import JOURNAL, Journal
from minigpt_cli.runstore.store import RunStore


def test_events_are_read_as_they_were_added(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs")
    assert journal.events() == []
    added = [
        journal.append("guess", 0, "started", {"text": "Äö\u2028 “book”.txt", "seed": 3}),
        journal.append("guess", 1, "entered"),
        journal.append("count", 0, "ran", {"argv": ["train", "--lr", "1e-3"], "code": 130}),
    ]
    assert journal.events() == added
    assert RunStore(tmp_path / "runs").list() == []  # it is not taken for a run


def test_a_line_that_a_kill_cut_off_is_ignored_and_then_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first = journal.append("guess", 0, "entered")
    whole = journal.path.read_bytes()
    journal.append("guess", 1, "entered")
    both = journal.path.read_bytes()
    for length in range(len(whole), len(both)):
        journal.path.write_bytes(both[:length])
        assert journal.events() == [first]
        added = journal.append("count", 0, "entered")
        assert journal.events() == [first, added]
        assert journal.path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"\xff", b'{"t": "x"}', b"", b'{"t":"2026-01-01T00:00:00Z","lesson":"guess","step":0,"event":"dreamt","data":{}}'],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    journal = Journal(tmp_path)
    journal.append("guess", 0, "entered")
    with open(journal.path, "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(RunDamaged, match="line 2 is not") as raised:
        journal.events()
    assert JOURNAL in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_process_at_a_time_has_the_course_open(tmp_path: Path) -> None:
    with Journal(tmp_path).held(), pytest.raises(RunLocked, match="open in another terminal"), Journal(tmp_path).held():
        pass


def test_a_journal_of_many_hours_is_not_read(tmp_path: Path) -> None:
    line = '{"t": "2026-01-02T03:04:05Z", "lesson": "a", "step": 0, "event": "hint"}\n'
    (tmp_path / JOURNAL).write_text(line * (6 << 20 >> 6))
    with pytest.raises(RunDamaged, match="more than"):
        Journal(tmp_path).events()
