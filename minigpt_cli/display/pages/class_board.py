"""A class as one page to show and to print: the best run of each student, how the class bet, and what it knew before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt_cli.display import format
from minigpt_cli.display.class_board import (
    ClassBoard,
    bet_sentence,
    bets_figures,
    is_split,
    problem_rows,
    ranking_table,
    test_sentence,
    text_sentences,
    title_of,
)
from minigpt_cli.display.pages.intervals import Interval, bar_rows, interval_rows
from minigpt_cli.display.pages.page import Markup, html_page, remark, section, table, tag
from minigpt_cli.display.tables import Column

if TYPE_CHECKING:
    from minigpt_cli.evaluation.class_board import Place, Question

_GREEN = "Each student bet on their own run, so what happened may differ. Green: it happened in at least one."
_FIRST, _OTHER, _HAPPENED = 0, None, 2  # chart colours


def class_page(board: ClassBoard) -> str:
    """The page."""
    questions = board.journals.questions
    about = f"{board.n_students} student{'s' * (board.n_students != 1)}"
    parts = [
        remark(about),
        section("The best run of each student", *_rankings(board)),
        section(
            "How the class bet", *([remark(_GREEN)] if questions else []), *(part for question in questions for part in _bets(question))
        ),
        section("Before and after the course", *([tag("p", test_sentence(board.journals.test))] if questions else [])),
        section("What could not be used", table([Column("student"), Column("what")], problem_rows(board))),
    ]
    return html_page(f"The class {board.name}", parts)


def _rankings(board: ClassBoard) -> list[Markup]:
    if not board.boards:
        return [tag("p", "No run that was handed in can be ranked.")]
    parts = [*map(remark, text_sentences(board))]
    for number, places in enumerate(board.boards):
        title = title_of(board, number)
        parts += [tag("h3", title)] if title else []
        parts += [interval_rows([_interval(place) for place in places]), table(*ranking_table(places), best=0)]
    return parts


def _interval(place: Place) -> Interval:
    entry = place.entry
    low, high = entry.ci95 or (entry.nats_per_char, entry.nats_per_char)
    tied = " ≈" if place.tied_with_best and place.rank > 1 else ""
    colour = _FIRST if place.tied_with_best else _OTHER
    return Interval(f"{place.rank} {entry.student}", low, high, format.loss(entry.nats_per_char) + tied, colour, entry.nats_per_char)


def _all_bets(questions: Sequence[Question]) -> list[Markup]:
    return [remark(_GREEN), *(part for question in questions for part in _bets(question))] if questions else []


def _bets(question: Question) -> list[Markup]:
    rows = [
        Interval(option.label, 0, option.n_bets, bets_figures(option), _HAPPENED if option.n_happened else _OTHER)
        for option in question.options
    ]
    split = [tag("p", "The class was split: let both sides say why.", class_="verdict")] if is_split(question) else []
    asked: Sequence[Markup] = [remark(question.prompt)] if question.prompt else []
    return [tag("h3", question.name), *asked, bar_rows(rows, full=question.n), *split, tag("p", bet_sentence(question))]
