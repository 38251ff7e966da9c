"""The page that a learner keeps at the end of the course: bets and what happened, the guessing game, questions missed, runs made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minigpt_cli.display.pages.intervals import Interval, bar_rows
from minigpt_cli.display.pages.page import Markup, html_page, remark, section, table, tag, tinted
from minigpt_cli.display.tables import Column
from minigpt_cli.escaping import unix_lines

_STRONG = 4.0  # nats: a character that costs this much gets full colour
_HAPPENED, _NOT = 2, None  # chart colours


@dataclass(frozen=True)
class Bet:
    """A bet whose outcome was measured."""

    lesson: str
    question: str
    options: Sequence[tuple[str, float]]  # text, and the probability that the bet gave it
    choice: int
    outcome: int
    nats: float
    guess_nats: float  # of equal probabilities


@dataclass(frozen=True)
class Player:
    """One who predicted the characters of the game."""

    name: str
    nats_per_char: float
    difference: tuple[float, float, float] | None = None  # minus the learner's, with its 95 % interval; None: the learner


@dataclass(frozen=True)
class Game:
    """The guessing game."""

    context: str
    target: str
    nats: Sequence[float]  # of the learner, of each character of the target
    players: Sequence[Player]
    ranks: Sequence[int]  # 1 to 3: the try that was right; 4: none


@dataclass(frozen=True)
class Question:
    """A question and the right answer's sentence."""

    lesson: str
    question: str
    chosen: str
    right: str
    why: str = ""


@dataclass(frozen=True)
class Made:
    """A run that passed a step of the course."""

    lesson: str
    name: str
    about: str  # "modern, 109 k parameters, 200 steps"; "" where the run is no longer there
    score: str  # "1.8912 ±0.041"
    is_fair: bool = True  # whether the score may be compared: no part of the model is left out


@dataclass(frozen=True)
class Course:
    """Everything on the page."""

    about: str
    bets: Sequence[Bet] = ()
    open_bets: int = 0  # whose outcome was not measured
    game: Game | None = None
    right: int = 0  # questions answered rightly at once
    asked: int = 0
    missed: Sequence[Question] = ()
    cases: Sequence[tuple[str, str, str]] = ()  # when, the learner's answer, what it was
    cases_about: str = ""
    made: Sequence[Made] = ()
    built: str = ""  # about the learner's own my_gpt.py


def course_page(course: Course) -> str:
    """The page."""
    parts = [
        remark(course.about),
        section("You as a language model", *_game(course.game)),
        section("Your bets", *_bets(course)),
        section("Questions", *_questions(course)),
        section("The ward", *_cases(course)),
        section("What you made", *_made(course)),
    ]
    return html_page("What I learned about a GPT", parts)


def _game(game: Game | None) -> list[Markup]:
    if game is None:
        return []
    ordered = sorted(game.players, key=lambda player: player.nats_per_char)
    rows = [Interval(p.name, 0, p.nats_per_char, f"{p.nats_per_char:.2f}", 1 if p.difference is None else 0) for p in ordered]
    tries = [f"{game.ranks.count(rank)} at the {word} try" for rank, word in ((1, "first"), (2, "second"), (3, "third"))]
    apart = [_difference(player) for player in ordered if player.difference is not None]
    text = [tag("span", unix_lines(game.context), class_="dim"), *map(_tinted_nats, game.target, game.nats)]
    return [
        tag("p", f"Nats per character on the same {len(game.target)} characters of unseen text; less is better."),
        bar_rows(rows, full=ordered[-1].nats_per_char),
        tag("p", f"Your guesses: {', '.join(tries)}, {game.ranks.count(4)} not at all."),
        table([Column("compared with you"), Column("nats", right=True), Column("95 %", right=True), Column("")], apart),
        remark("So few characters leave much to luck: where the interval holds 0, it cannot be told who is better."),
        tag("pre", *text),
        remark("The last characters are those you guessed; a stronger colour cost you more."),
    ]


def _difference(player: Player) -> list[str]:
    assert player.difference is not None  # it is not the learner
    mean, low, high = player.difference
    verdict = "better than you" if high < 0 else "worse than you" if low > 0 else "cannot be told"
    return [player.name, f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}", verdict]


def _tinted_nats(char: str, nats: float) -> Markup:
    return tinted({"\n": "⏎\n", "\r": ""}.get(char, char), nats / _STRONG, about=f"{nats:.2f} nats")


def _bets(course: Course) -> list[Markup]:
    if not course.bets:
        return []
    n = len(course.bets)
    mean, guess = (sum(values) / n for values in ([bet.nats for bet in course.bets], [bet.guess_nats for bet in course.bets]))
    verdict = "less than" if mean < guess - 0.005 else "more than" if mean > guess + 0.005 else "as much as"
    bets = "One bet" if n == 1 else f"{n} bets"
    still_open = f" {course.open_bets} more had no outcome yet." if course.open_bets else ""
    parts = [
        tag(
            "p",
            tag(
                "p",
                f"{bets} cost {mean:.2f} nats{' each' * (n > 1)}, {verdict} always guessing, {guess:.2f}.{still_open}",
                class_="verdict",
            ),
            class_="verdict",
        ),
        remark("A bet costs −ln p, where p is what it gave to what happened: the loss that also trains the model. Green is what happened."),
    ]
    for bet in course.bets:
        rows = [
            Interval(
                f"{text}{' (your bet)' if i == bet.choice else ''}", 0, p, f"{p:.0%}{' ✓' if i == bet.outcome else ''}",
                _HAPPENED if i == bet.outcome else _NOT,
            )
            for i, (text, p) in enumerate(bet.options)
        ]  # fmt: skip
        parts += [tag("h3", bet.lesson), remark(bet.question), bar_rows(rows, full=1), tag("p", f"It cost {bet.nats:.2f} nats.")]
    return parts


def _questions(course: Course) -> list[Markup]:
    if not course.asked:
        return []
    parts = [tag("p", f"{course.right} of {course.asked} were right at the first answer.{' Those that were not:' * bool(course.missed)}")]
    for missed in course.missed:
        answers = [tag("p", "You said: ", missed.chosen), tag("p", tag("strong", "Right is: "), missed.right, " ", missed.why)]
        parts += [tag("h3", missed.lesson), remark(missed.question), *answers]
    return parts


def _cases(course: Course) -> list[Markup]:
    rows = [[when, said, had, "right" if said == had else "wrong"] for when, said, had in course.cases]
    columns = [Column("asked", 4), Column("you said"), Column("what was wrong"), Column("")]
    return [tag("p", course.cases_about), table(columns, rows)] if rows else []


def _made(course: Course) -> list[Markup]:
    rows = [[run.lesson, run.name, f"{run.score}{'' if run.is_fair else ' †'}", run.about or "no longer there"] for run in course.made]
    parts = [table([Column("lesson", 4), Column("run"), Column("nats/char", right=True), Column("model")], rows)]
    if any(not run.is_fair for run in course.made):
        parts.append(remark("† lacks a part on purpose, so its score is not comparable."))
    return [*parts, *([tag("p", course.built)] if course.built else [])] if rows or course.built else []
