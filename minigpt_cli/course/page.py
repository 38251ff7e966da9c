"""The page to keep, from the journal and the runs alone: what was bet, what happened, what was made. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from minigpt_cli.course import ward
from minigpt_cli.course.events import events_of
from minigpt_cli.course.guessing import difference
from minigpt_cli.course.lesson import Ask, Page, lesson_named, lessons
from minigpt_cli.course.lesson import Bet as BetStep
from minigpt_cli.display import format
from minigpt_cli.display.pages.course import Bet, Course, Game, Made, Player, Question, course_page
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.runstore.journal import Event, Journal
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage.atomic_io import write_atomic

PAGE = "course.html"
BEFORE, AFTER = "doctor", "ward"  # the lessons with cases
BUILD = "build"


def write_page(store: RunStore, journal: Journal) -> Path:
    """The path of the page, which is written into the folder of runs. Raises MiniGPTError."""
    path = store.dir / PAGE
    write_atomic(path, course_page(course_of(store, events_of(journal))))
    return path


def course_of(store: RunStore, events: Sequence[Event]) -> Course:
    """What the journal and the runs say of the course."""
    bets = list(_bets(events))
    answers = list(_first_answers(events))
    cases, about_cases = _cases(events)
    return Course(
        about=_about(events),
        bets=bets,
        open_bets=len({e.data["question"] for e in events if e.event == "bet"}) - len(bets),
        game=_game(events),
        right=sum(bool(event.data["right"]) for event, _ in answers),
        asked=len(answers),
        missed=[_missed(lesson, event) for event, lesson in answers if not event.data["right"]],
        cases=cases,
        cases_about=about_cases,
        made=list(_made(store, events)),
        built=_built(events),
    )


def _about(events: Sequence[Event]) -> str:
    started = next((event for event in reversed(events) if event.event == "started"), None)
    if started is None:
        return "The course has not been begun."
    text = Path(started.data["text"]).name if started.data.get("text") else "the default text"
    finished = {event.lesson for event in events if event.event == "finished" and not event.data.get("skipped")}
    others = [lesson for lesson in lessons() if not isinstance(lesson.steps[-1], Page)]  # the page is the end of its lesson
    missing = [lesson.title for lesson in others if lesson.name not in finished]
    done = f"Not done yet: {', '.join(missing)}." if missing else "All lessons are done."
    return f"On {text}. Begun {events[0].t[:10]}, last used {events[-1].t[:10]}. {done}"


# ---- bets and questions


def _bets(events: Sequence[Event]) -> Iterator[Bet]:
    """Every bet that was revealed; of one that was made again after its outcome was known, the first."""
    placed: dict[str, Event] = {}
    revealed = set()
    for event in events:
        question = event.data.get("question", "")
        if event.event == "bet" and question not in revealed:
            placed[question] = event
        elif event.event == "revealed" and question not in revealed and event.data["outcome"] in _shares(placed, question):
            revealed.add(question)
            yield _bet(placed[question], event)


def _shares(placed: Mapping[str, Event], question: str) -> Collection[str]:
    """The options of a bet on the question; none if there is no bet."""
    return placed[question].data["p"] if question in placed else ()


def _bet(placed: Event, revealed: Event) -> Bet:
    p = placed.data["p"]
    step = _step(placed.data["question"], BetStep)
    texts = {option.id: option.text for option in step.options} if step else {}
    return Bet(
        lesson=_title(placed.lesson),
        question=step.words if step else "",
        options=[(texts.get(option, option), float(p[option])) for option in p],
        choice=list(p).index(placed.data["choice"]),
        outcome=list(p).index(revealed.data["outcome"]),
        nats=-math.log(p[revealed.data["outcome"]]),
        guess_nats=math.log(len(p)),
    )


def _first_answers(events: Sequence[Event]) -> Iterator[tuple[Event, str]]:
    """The first answer to every question but those about cases, with its lesson."""
    seen = set()
    for event in events:
        if event.event == "asked" and event.lesson not in (BEFORE, AFTER) and event.data["question"] not in seen:
            seen.add(event.data["question"])
            yield event, event.lesson


def _missed(lesson: str, event: Event) -> Question:
    step = _step(event.data["question"], Ask)
    if step is None:
        return Question(_title(lesson), event.data["question"], str(event.data["choice"]), "")
    right = next(answer for answer in step.answers if answer.right)
    chosen = {str(number): answer.text for number, answer in enumerate(step.answers, 1)}.get(event.data["choice"], event.data["choice"])
    return Question(_title(lesson), step.words, chosen, right.text, right.reply)


S = TypeVar("S", BetStep, Ask)


def _step(question: str, kind: type[S]) -> S | None:
    """The step of a question, LESSON.ID; None if the lesson no longer has it."""
    lesson = lesson_named(question.partition(".")[0])
    found = (step for step in (lesson.steps if lesson else ()) if isinstance(step, kind) and question.endswith(f".{step.id}"))
    return next(found, None)


def _title(lesson: str) -> str:
    known = lesson_named(lesson)
    return known.title if known else lesson


# ---- the game, the cases, the runs


def _game(events: Sequence[Event]) -> Game | None:
    """The last game, and the models that were scored on its characters."""
    at = max((i for i, event in enumerate(events) if event.event == "guessed" and "ranks" in event.data), default=None)
    if at is None:
        return None
    game = events[at].data
    you = np.array(game["nats"])
    others = {"uniform": np.full(len(you), game["uniform"]), "character pairs": np.array(game["bigram_nats"])}
    models = (event.data for event in events[at + 1 :] if event.event == "guessed" and event.data["n_chars"] == len(you))
    others |= {model["run"]: np.array(model["nats"]) for model in models}
    players = [Player("you", float(you.mean()))]
    for name, nats in others.items():
        apart = difference(nats, you)
        players.append(Player(name, float(nats.mean()), (apart.mean, apart.low, apart.high)))
    return Game(game["context"], game["target"], game["nats"], players, game["ranks"])


def _cases(events: Sequence[Event]) -> tuple[list[tuple[str, str, str]], str]:
    """Every case with the first answer to it, and what may be said of all."""
    first: dict[str, Event] = {}
    for event in events:
        if event.event == "asked" and event.lesson in (BEFORE, AFTER):
            first.setdefault(event.data["question"], event)
    rows = []
    right: dict[str, list[bool]] = {BEFORE: [], AFTER: []}
    for event in first.values():
        right[event.lesson].append(bool(event.data["right"]))
        when = "before the course" if event.lesson == BEFORE else "after it"
        rows.append((when, event.data.get("answer", ""), event.data.get("right_answer", "")))
    return rows, ward.summary(right[BEFORE], right[AFTER]) if rows else ""


def _made(store: RunStore, events: Sequence[Event]) -> Iterator[Made]:
    """The runs that passed a step, in the order in which they were made."""
    names = {str(name): event.lesson for event in reversed(events) if event.event == "passed" for name in event.data.get("runs", [])}
    for name, lesson in reversed(names.items()):
        try:
            record, model = (run := store.find_name(name)).record, run.config.model
        except MiniGPTError:
            yield Made(_title(lesson), name, "", "")
            continue
        about = f"{record.arch}, {format.count(record.n_params)} parameters, {record.stop_step:,} steps"
        without = getattr(model, "without", "")
        score = f"{record.best.nats_per_char:.4f} {format.plus_minus(record.best.nats_per_char, record.best.ci95)}" if record.best else "-"
        yield Made(_title(lesson), name, f"{about}, without {without}" if without else about, score.strip(), is_fair=not without)


def _built(events: Sequence[Event]) -> str:
    """What became of the learner's own my_gpt.py; "" where it was not begun."""
    passed = {event.step for event in events if event.lesson == BUILD and event.event == "passed"}
    if any(event.lesson == BUILD and event.event == "finished" for event in events):
        return "You wrote a GPT yourself: every part of my_gpt.py passes its checks."
    if not passed:
        return ""
    return f"You wrote {'one part' if len(passed) == 1 else f'{len(passed)} parts'} of my_gpt.py, and its checks pass."
