"""A journal from elsewhere: what the course cannot use is one line, and the rest is on the page."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.cli import run as minigpt
from minigpt_cli.course.events import events_of
from minigpt_cli.course.page import PAGE, course_of
from minigpt_cli.display.pages.course import course_page
from minigpt_cli.errors import RunDamaged
from minigpt_cli.runstore.journal import Journal
from minigpt_cli.runstore.store import RunStore

EVIL = "<script>alert(1)</script>\x1b[2J"
P = {"pairs": 0.1, "you": 0.8, "tie": 0.1}
GAME = {"n_chars": 2, "nats_per_char": 1.0, "uniform": 3.0, "bigram": 2.0, "ranks": [1, 4], "nats": [1.0, 1.0], "bigram_nats": [2.0, 2.0]}
WHOLE: list[tuple[str, int, Any, dict[str, Any]]] = [
    ("guess", 0, "started", {"text": EVIL, "seed": 3}),
    ("guess", 1, "guessed", {**GAME, "context": "To be", "target": "or"}),
    ("count", 1, "ran", {"argv": ["train"], "code": 0}),
    ("count", 1, "passed", {"runs": [EVIL], "part": "pairs"}),
    ("count", 1, "guessed", {"run": EVIL, "n_chars": 2, "nats_per_char": 1.0, "nats": [1.0, 1.0]}),
    ("count", 2, "bet", {"question": "count.counting", "choice": "you", "p": P}),
    ("count", 3, "revealed", {"question": "count.counting", "outcome": "you"}),
    ("count", 4, "asked", {"question": f"count.{EVIL}", "choice": EVIL, "right": False}),
    ("ward", 0, "asked", {"question": "ward.a", "choice": "leak", "right": False, "answer": EVIL, "right_answer": EVIL}),
    ("count", 900, "entered", {}),
]


def written(folder: Path, events: list[tuple[str, int, Any, dict[str, Any]]]) -> str:
    """The page of these events. Raises RunDamaged."""
    journal = Journal(folder)
    keys = ("t", "lesson", "step", "event", "data")
    lines = [json.dumps(dict(zip(keys, ("2026-01-02T03:04:05Z", *event), strict=True))) + "\n" for event in events]
    journal.path.write_text("".join(lines))
    return course_page(course_of(RunStore(folder), events_of(journal)))


def test_whatever_is_wrong_in_the_data_of_an_event_is_one_line_or_does_no_harm(tmp_path: Path) -> None:
    assert "<script>alert" not in written(tmp_path, WHOLE)
    refused: list[str] = []
    for place, (lesson, step, kind, data) in enumerate(WHOLE):
        for key in data:
            for value in (None, [], "2", -1, {"you": 0.0}):
                wrong = {name: one for name, one in data.items() if name != key} | ({} if value is None else {key: value})
                try:
                    written(tmp_path, [*WHOLE[:place], (lesson, step, kind, wrong), *WHOLE[place + 1 :]])
                except RunDamaged as error:
                    refused.append(str(error).partition(f"line {place + 1} is ")[2])
    assert len(refused) > 80
    assert all(message.startswith("not an event: ") for message in refused)


def test_a_session_goes_on_from_any_journal_or_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINIGPT_RUNS_DIR", str(tmp_path))
    written(tmp_path, WHOLE)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/goto page\n"))
    assert minigpt(["--learn"]) == 0, capsys.readouterr().err
    assert (tmp_path / PAGE).is_file()
    Journal(tmp_path).append("count", 0, "bet", {"question": "count.counting"})
    assert minigpt(["--learn"]) != 0
    assert "line 11 is not an event: choice" in capsys.readouterr().err.splitlines()[-1]
