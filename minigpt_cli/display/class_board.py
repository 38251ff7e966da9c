"""A class on the terminal: its best runs, and how it bet. The sentences and rows are those of the page too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_cli.display import console, format
from minigpt_cli.display.tables import Column, Fields, Style, cells_of, print_table
from minigpt_cli.escaping import one_line

if TYPE_CHECKING:
    from minigpt_cli.evaluation.class_board import Journals, Option, Place, PrePost, Question
    from minigpt_cli.evaluation.eval_target import Target

_SPLIT = 0.6  # where no option has more than this share of the bets, the class is split


@dataclass(frozen=True)
class ClassBoard:
    """All that is shown of a class."""

    name: str  # of its folder
    n_students: int
    target: Target | None  # the text that all were scored on; None: each on its own validation text
    boards: Sequence[Sequence[Place]]  # one for each text
    journals: Journals
    problems: Sequence[tuple[str, str]]  # student, and what could not be used


_RANKING: Fields[Place] = (
    (Column("#", right=True), lambda place: str(place.rank)),
    (Column("student", most=30), lambda place: place.entry.student),
    (Column("nats/char", right=True), lambda place: format.loss(place.entry.nats_per_char)),
    (Column("95 %", right=True), lambda place: format.plus_minus(place.entry.nats_per_char, place.entry.ci95)),
    (Column(""), lambda place: "≈" if place.tied_with_best and place.rank > 1 else ""),
    (Column("run", 1, most=30), lambda place: place.entry.run.name),
    (Column("arch", 2), lambda place: place.entry.run.record.arch),
    (Column("params", 3, right=True), lambda place: format.count(place.entry.run.record.n_params)),
    (Column("tokenizer", 5, most=16), lambda place: place.entry.run.record.tokenizer),
    (Column("runs", 4, right=True), lambda place: str(place.n_runs)),
)


def ranking_table(places: Sequence[Place]) -> tuple[list[Column], list[list[str]]]:
    """Columns and cells of the ranking on one text."""
    return cells_of(_RANKING, places)


def text_sentences(board: ClassBoard) -> list[str]:
    """On what the runs were scored, and what that means."""
    tie = "≈ is statistically tied with the first of its text."
    if board.target is not None:
        n = len(board.target.text or "")
        return [f"The best run of each student, scored here on {board.target.label}: {n:,} characters, the same for all. {tie}"]
    own = "The best run of each student, as its own record says, on its own validation text; nothing was measured again."
    several = ["Scores on different texts cannot be compared, so each text has its own table."] if len(board.boards) > 1 else []
    return [f"{own} {tie}", *several, "To score every run here, on one text: --data FILE."]


def title_of(board: ClassBoard, number: int) -> str:
    """The title of one of several rankings."""
    if len(board.boards) == 1:
        return ""
    record = board.boards[number][0].entry.run.record
    return f"{record.corpus.label if record.corpus else 'a text without a record'} ({record.text_sha256[:8]})"


def bet_sentence(question: Question) -> str:
    """How sure the class was, and what its bets cost."""
    sure = f"{question.n} bet{'s' * (question.n != 1)}, on average {question.mean_confidence:.0%} sure"
    if question.mean_nats is None:
        return f"{sure}; no outcome is known yet."
    cost = f"a bet cost {question.mean_nats:.2f} nats on average; always guessing costs {question.guess_nats:.2f}"
    return f"{sure}; {cost}."


def bets_figures(option: Option) -> str:
    """How many bet on an option, and in how many of their runs it came so."""
    bets = f"{option.n_bets} bet{'s' * (option.n_bets != 1)}"
    return f"{bets}, happened {option.n_happened}×" if option.n_happened else bets


def problem_rows(board: ClassBoard) -> list[tuple[str, str]]:
    """What could not be used, each once, with the names of the students whom it concerns."""
    students: dict[str, list[str]] = defaultdict(list)
    for student, problem in board.problems:
        students[problem].append(student)
    return [(", ".join(names), problem) for problem, names in students.items()]


def is_split(question: Question) -> bool:
    """Whether the class was of several minds: something to discuss."""
    return question.n > 1 and max(option.n_bets for option in question.options) <= _SPLIT * question.n


def test_sentence(test: PrePost | None) -> str:
    """What the class knew about sick runs before and after the course."""
    if test is None:
        return "No student has answered the cases before and after the course."
    shares = f"Of the cases before the course {test.before:.0%} were right, of those after it {test.after:.0%}"
    if test.ci95 is None:
        return f"{shares}; one student, so nothing can be said about a class."
    low, high = (100 * end for end in test.ci95)
    verdict = "they got better at it" if low > 0 else "they did worse" if high < 0 else "that may be chance"
    return f"{shares} ({test.n} students): {100 * test.difference:+.0f} points (95 %: {low:+.0f} to {high:+.0f}), {verdict}."


def print_class(board: ClassBoard) -> None:
    """Print the rankings, the bets and the test; what could not be used goes to stderr."""
    for number, places in enumerate(board.boards):
        styles: list[Style] = ["best" if place.rank == 1 else "" for place in places]
        print_table(*ranking_table(places), styles=styles, title=title_of(board, number))
    if not board.boards:
        console.notice("no run that was handed in can be ranked")
    for number, question in enumerate(board.journals.questions):
        console.write("\nHow the class bet" if number == 0 else "")
        console.write_wrapped(f"{one_line(question.name)}{' *' * is_split(question)}  {one_line(question.prompt)}")
        for option in question.options:
            console.write_wrapped(f"  {bets_figures(option):22}{one_line(option.label)}", " " * 24)
        console.write_wrapped(f"  {bet_sentence(question)}", "  ")
    if board.journals.questions:
        console.write("")
        console.write_wrapped(test_sentence(board.journals.test))
    for sentence in text_sentences(board) if board.boards else ():
        console.notice(sentence)
    if any(map(is_split, board.journals.questions)):
        console.notice("* the class was split: let both sides say why")
    for students, problem in problem_rows(board):
        console.warn(f"{students}: {problem}")
