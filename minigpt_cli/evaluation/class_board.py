"""A class: the best run of each student, ranked, and how the class bet, question by question. No torch.

Ranked as on the leaderboard: by nats per character, each text apart, with every run compared with the first of its text over the same
stretches (paired; Holm's correction). Where only recorded scores are there, the intervals are compared.
A bet costs −ln p, where p is what it gave to what happened. Only the first bet of a student on a question counts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minigpt_cli.bounds import Line
from minigpt_cli.evaluation.handed_in import Entry, Student
from minigpt_cli.evaluation.leaderboard import overlap, paired_ties
from minigpt_cli.evaluation.seeds import group_of
from minigpt_cli.evaluation.statistics import student_975
from minigpt_cli.runstore.journal import Event

BEFORE, AFTER = "doctor", "ward"  # the lessons that ask for the illness of runs, before and after the course
WHY = "why"  # the end of a question that is not about a case


@dataclass(frozen=True)
class Place:
    """The best run of a student on the board."""

    rank: int
    entry: Entry
    tied_with_best: bool
    n_runs: int  # of the student on this text


def ranked(entries: Iterable[Entry]) -> list[list[Place]]:
    """The best run of each student, best first, a list for each text; the text of most students, and of these the longest, comes
    first."""
    by_text: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        by_text[entry.text_sha256][entry.student].append(entry)
    boards = [_board(students) for students in by_text.values()]
    return sorted(boards, key=lambda board: (-len(board), -_n_chars(board[0].entry), board[0].entry.text_sha256))


def _n_chars(entry: Entry) -> int:
    """Characters of the run's validation text, as its record says."""
    corpus = entry.run.record.corpus
    return corpus.splits["val"].n_chars if corpus and "val" in corpus.splits else 0


def _board(students: dict[str, list[Entry]]) -> list[Place]:
    best = [min(entries, key=lambda entry: (entry.nats_per_char, entry.run.name)) for entries in students.values()]
    first, *others = sorted(best, key=lambda entry: (entry.nats_per_char, entry.student))
    tied = {entry.student for entry in others if overlap(first.ci95, entry.ci95)}
    if first.cells is not None:
        tied = paired_ties(first.cells, {entry.student: entry.cells for entry in others if entry.cells is not None})
    return [
        Place(rank, entry, entry is first or entry.student in tied, len(students[entry.student]))
        for rank, entry in enumerate([first, *others], 1)
    ]


# ---- bets

_Probability = Annotated[float, Field(gt=0, le=1)]


_Name = Annotated[Line, Field(max_length=100)]
_Sentence = Annotated[Line, Field(max_length=2000)]
MOST_QUESTIONS = 50  # that are shown, those of most students


class _Bet(BaseModel):
    """The data of a bet in a journal."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    question: _Name
    options: Annotated[list[_Name], Field(min_length=2, max_length=6)]
    choice: _Name
    p: dict[_Name, _Probability]
    prompt: _Sentence = ""
    labels: Annotated[dict[_Name, _Sentence], Field(max_length=6)] = {}

    @model_validator(mode="after")
    def _is_about_its_options(self) -> Self:
        if self.choice not in self.options or set(self.p) != set(self.options) or not 0.99 < sum(self.p.values()) < 1.01:
            raise ValueError("the choice or the probabilities are not those of the options")
        return self


class _Revealed(BaseModel):
    """The data of an outcome in a journal."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    question: _Name
    outcome: _Name


class _Asked(BaseModel):
    """The data of an answer in a journal."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    question: _Name
    right: bool


@dataclass(frozen=True)
class Option:
    """One option of a question, and the class."""

    name: str
    label: str  # its sentence
    n_bets: int
    n_happened: int  # in how many of the students' own runs it came so


@dataclass(frozen=True)
class Question:
    """How the class bet on a question."""

    name: str  # LESSON.ID
    prompt: str
    options: list[Option]
    n: int  # students who bet
    mean_confidence: float  # mean probability of the chosen option
    n_revealed: int  # bets whose outcome is known
    mean_nats: float | None  # of those; None: there are none

    @property
    def guess_nats(self) -> float:
        """What a bet costs that gives all options the same probability."""
        return math.log(len(self.options))


@dataclass(frozen=True)
class PrePost:
    """The class before and after the course: shares of right answers about sick runs, students who did both."""

    n: int
    before: float
    after: float
    difference: float
    ci95: tuple[float, float] | None  # of the difference; None for one student


@dataclass(frozen=True)
class Journals:
    """What the journals of a class say."""

    questions: list[Question]  # in the order in which the class met them
    test: PrePost | None  # None: nobody did both
    unreadable: dict[str, int]  # by student: events that do not hold what they should


def summary(students: Sequence[Student]) -> Journals:
    """What the journals of the students say."""
    bets: dict[str, list[tuple[_Bet, str | None]]] = defaultdict(list)
    answers: list[tuple[list[float], list[float]]] = []
    unreadable: Counter[str] = Counter()
    for student in students:
        read = _Read(student.events)
        unreadable[student.name] = read.unreadable
        for question, bet in read.bets.items():
            bets[question].append((bet, read.outcomes.get(question)))
        if read.right[BEFORE] and read.right[AFTER]:
            answers.append((read.right[BEFORE], read.right[AFTER]))
    shown = set(sorted(bets, key=lambda name: -len(bets[name]))[:MOST_QUESTIONS])
    questions = [_question(name, pairs) for name, pairs in bets.items() if name in shown]
    return Journals(questions, _pre_post(answers), {name: n for name, n in unreadable.items() if n})


class _Read:
    """The events of one journal that the class needs, the first of each question."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.bets: dict[str, _Bet] = {}
        self.outcomes: dict[str, str] = {}
        self.right: dict[str, list[float]] = {BEFORE: [], AFTER: []}
        self.unreadable = 0
        asked: set[str] = set()
        for event in events:
            try:
                if event.event == "bet":
                    bet = _Bet.model_validate(event.data)
                    self.bets.setdefault(bet.question, bet)
                elif event.event == "revealed":
                    revealed = _Revealed.model_validate(event.data)
                    self.outcomes.setdefault(revealed.question, revealed.outcome)
                elif event.event == "asked" and event.lesson in self.right:
                    answer = _Asked.model_validate(event.data)
                    if answer.question not in asked and not answer.question.endswith(f".{WHY}"):
                        asked.add(answer.question)
                        self.right[event.lesson].append(float(answer.right))
            except ValidationError:
                self.unreadable += 1


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _question(name: str, pairs: Sequence[tuple[_Bet, str | None]]) -> Question:
    """The bets on one question; those with other options than most are left out."""
    usual = Counter(tuple(bet.options) for bet, _ in pairs).most_common(1)[0][0]
    kept = [(bet, outcome) for bet, outcome in pairs if tuple(bet.options) == usual]
    labels = {option: _most_common(bet.labels.get(option, "") for bet, _ in kept) for option in usual}
    known = [(bet, outcome) for bet, outcome in kept if outcome in usual]
    chosen, happened = Counter(bet.choice for bet, _ in kept), Counter(outcome for _, outcome in known)
    options = [Option(option, labels[option] or option, chosen[option], happened[option]) for option in usual]
    costs = [-math.log(bet.p[outcome]) for bet, outcome in known if outcome is not None]
    confidence = _mean([bet.p[bet.choice] for bet, _ in kept])
    prompt = _most_common(bet.prompt for bet, _ in kept)
    return Question(name, prompt, options, len(kept), confidence, len(costs), _mean(costs) if costs else None)


def _most_common(texts: Iterable[str]) -> str:
    return Counter(text for text in texts if text).most_common(1)[0][0] if (texts := list(texts)) and any(texts) else ""


def _pre_post(answers: Sequence[tuple[list[float], list[float]]]) -> PrePost | None:
    """Shares and their difference, with Student's interval over students.

    A student answers few cases, so several may have the same difference by chance, and the spread over students would be 0. So the
    standard error is at least that of so many answers, each right with the class's probability (Agresti & Coull 1998).
    """
    if not answers:
        return None
    before, after = (_mean([_mean(side[i]) for side in answers]) for i in (0, 1))
    difference, n = after - before, len(answers)
    group = group_of([_mean(right_after) - _mean(right_before) for right_before, right_after in answers])
    if group.std_error is None:
        return PrePost(n, before, after, difference, None)
    variance = sum(_variance([side[i] for side in answers]) for i in (0, 1))
    half = student_975(n - 1) * max(group.std_error, math.sqrt(variance))
    return PrePost(n, before, after, difference, (max(-1.0, difference - half), min(1.0, difference + half)))


def _variance(sides: Sequence[list[float]]) -> float:
    """Variance of the mean share of right answers, by chance alone: of each student's answers, in one half of the test."""
    right, total = sum(map(sum, sides)), sum(map(len, sides))
    p = (right + 2) / (total + 4)
    return sum(p * (1 - p) / len(side) for side in sides) / len(sides) ** 2


def as_document(boards: Sequence[Sequence[Place]], found: Journals, problems: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The JSON document of a class."""
    of_record = ("arch", "tokenizer", "n_params")
    return {
        "ranking": [
            {
                "rank": place.rank,
                "student": place.entry.student,
                "run": place.entry.run.name,
                "nats_per_char": place.entry.nats_per_char,
                "ci95": place.entry.ci95,
                **{name: getattr(place.entry.run.record, name) for name in of_record},
                "n_runs": place.n_runs,
                "text_sha256": place.entry.text_sha256,
                "tied_with_best": place.tied_with_best,
            }
            for board in boards
            for place in board
        ],
        "questions": [
            {**vars(question), "options": [vars(option) for option in question.options], "guess_nats": question.guess_nats}
            for question in found.questions
        ],
        "test": None if found.test is None else vars(found.test),
        "problems": [{"student": student, "problem": problem} for student, problem in problems],
    }
