"""The page to keep says what the journal and the runs say, and nothing that was not measured."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pytest
from harness import tiny

from minigpt_cli.config import RunConfig
from minigpt_cli.course.guessing import Game
from minigpt_cli.course.lesson import lessons
from minigpt_cli.course.page import course_of, write_page
from minigpt_cli.runstore.journal import Journal
from minigpt_cli.runstore.records import Best
from minigpt_cli.runstore.store import RunStore

P = {"pairs": 0.1, "you": 0.8, "tie": 0.1}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path)
    journal.append("guess", 0, "started", {"text": "/home/someone/A Book.txt", "seed": 3})
    return journal


def bet(journal: Journal, p: dict[str, float], choice: str = "you") -> None:
    data = {"question": "count.counting", "options": list(p), "choice": choice, "confidence": 3, "p": p}
    journal.append("count", 0, "bet", data)


def reveal(journal: Journal, outcome: str) -> None:
    journal.append("count", 2, "revealed", {"question": "count.counting", "outcome": outcome, "nats": None})


def test_a_course_without_events_says_so(tmp_path: Path) -> None:
    found = course_of(RunStore(tmp_path), [])
    assert found.about == "The course has not been begun."
    assert (found.bets, found.game, found.missed, found.made) == ([], None, [], [])


def test_a_bet_counts_as_it_was_made_before_its_outcome_was_known(journal: Journal) -> None:
    store = RunStore(journal.dir)
    bet(journal, {"pairs": 0.95, "you": 0.025, "tie": 0.025}, "pairs")
    bet(journal, P)
    assert (found := course_of(store, journal.events())).bets == []
    assert found.open_bets == 1
    reveal(journal, "pairs")
    bet(journal, {"pairs": 0.95, "you": 0.025, "tie": 0.025}, "pairs")
    reveal(journal, "pairs")
    [only] = course_of(store, journal.events()).bets
    assert (only.choice, only.outcome) == (1, 0)
    assert (only.nats, only.guess_nats) == pytest.approx((-log(0.1), log(3)))
    assert "I was better." in [text for text, _ in only.options]  # the words of the lesson


def test_the_first_answer_to_a_question_counts(journal: Journal) -> None:
    for choice, right in (("1", False), ("2", True)):
        journal.append("count", 3, "asked", {"question": "count.why", "choice": choice, "right": right})
    journal.append("attention", 3, "asked", {"question": "attention.why", "choice": "1", "right": True})
    found = course_of(RunStore(journal.dir), journal.events())
    assert (found.right, found.asked) == (1, 2)
    [missed] = found.missed
    assert missed.chosen == "It needs more training steps."
    assert missed.right.startswith("It sees one character")


def test_models_are_beside_the_learner_on_the_same_characters(journal: Journal) -> None:
    game = Game("to be", "or not to ", "to be or not to be that is the question")
    for char in game.target:
        game.guess(char)
    journal.append("guess", 1, "guessed", {**game.data, "target": "another"})
    journal.append("guess", 1, "guessed", game.data)
    nats = [1.0, 0.5] * 5
    journal.append("count", 1, "guessed", {"run": "mine", "n_chars": 10, "nats_per_char": 0.75, "nats": nats})
    found = course_of(RunStore(journal.dir), journal.events()).game
    assert found is not None
    assert (found.target, found.ranks) == (game.target, [1] * 10)
    scores = {player.name: player.nats_per_char for player in found.players}
    assert scores["you"] == pytest.approx(game.nats_per_char, abs=1e-3)
    assert scores["mine"] == 0.75
    [(mean, low, high)] = [player.difference for player in found.players if player.name == "mine" and player.difference]
    assert mean == pytest.approx(0.75 - game.nats_per_char, abs=1e-3)
    assert low < mean < high


def case(journal: Journal, lesson: str, name: str, right: bool) -> None:
    said: dict[str, Any] = {
        "answer": "nothing is wrong",
        "right_answer": "nothing is wrong" if right else "training diverged: the losses exploded",
    }
    journal.append(lesson, 1, "asked", {"question": f"{lesson}.{name}", "choice": "healthy", "right": right, **said})


def test_cases_are_counted_before_and_after(journal: Journal) -> None:
    for lesson, name, right in (
        ("doctor", "ward-1", False),
        ("doctor", "ward-2", True),
        ("ward", "ward-3", True),
        ("ward", "ward-4", True),
    ):
        case(journal, lesson, name, right)
    found = course_of(RunStore(journal.dir), journal.events())
    assert "1 of 2 cases before the course and in 2 of 2 after it" in found.cases_about
    assert "Four cases are too few to say" in found.cases_about
    assert [when for when, _, _ in found.cases] == ["before the course"] * 2 + ["after it"] * 2
    assert found.asked == 0  # they are no questions of a lesson


def test_runs_are_shown_with_their_scores_or_said_to_be_gone(journal: Journal) -> None:
    store = RunStore(journal.dir)
    best = Best(step=9, nats_per_token=2, nats_per_char=2.0, ci95=(1.9, 2.1), whole_split=True)
    for name, model in (("mine", {"arch": "modern"}), ("cheat", {"arch": "plain", "without": "mask"})):
        config = RunConfig.model_validate({"model": model})
        run = tiny.begun(store, name, config, "{}")
        run.write_record(run.record.model_copy(update={"arch": config.model.arch, "best": best, "stop_step": 10, "n_params": 5000}))
    for name in ("mine", "cheat", "removed"):
        journal.append("attention", 1, "passed", {"runs": [name], "part": name})
    made = course_of(store, journal.events()).made
    assert [(run.name, run.score, run.is_fair) for run in made] == [
        ("mine", "2.0000 ±0.100", True),
        ("cheat", "2.0000 ±0.100", False),
        ("removed", "", True),
    ]
    assert made[0].about == "modern, 5 k parameters, 10 steps"
    assert made[2].about == ""


def test_the_page_is_written_beside_the_runs(journal: Journal) -> None:
    bet(journal, P)
    reveal(journal, "you")
    journal.append("build", 1, "passed", {"runs": []})
    path = write_page(RunStore(journal.dir), journal)
    assert path == journal.dir / "course.html"
    page = path.read_text("utf-8")
    assert "On A Book.txt." in page
    assert "Not done yet: " in page
    assert "/home/someone" not in page
    assert "You wrote one part of my_gpt.py" in page
    assert RunStore(journal.dir).list() == []
    for lesson in lessons()[:-1]:  # the last ends with the page
        journal.append(lesson.name, 9, "finished")
    assert "All lessons are done." in write_page(RunStore(journal.dir), journal).read_text("utf-8")
