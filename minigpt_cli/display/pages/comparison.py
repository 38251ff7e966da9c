"""A comparison as one HTML page: verdicts and scores with their intervals, what differs, curves, and where the sides differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt_cli.display.comparison import (
    SCORE_COLUMNS,
    Compared,
    outlook_sentence,
    part_rows,
    passage_sentence,
    scope_lines,
    score_rows,
    verdict_sentence,
)
from minigpt_cli.display.pages.chart import line_chart
from minigpt_cli.display.pages.intervals import Interval, interval_rows
from minigpt_cli.display.pages.page import COLOURS, Markup, differences_table, html_page, remark, section, side_by_side, table, tag, tinted
from minigpt_cli.display.tables import Column

if TYPE_CHECKING:
    from minigpt_cli.evaluation.comparison import Pair, Part, Passage

_STRONG = 1.5  # nats: a difference of this size gets full colour


def comparison_page(found: Compared) -> str:
    """The page."""
    names = found.names
    parts = [
        remark(found.text),
        section("Verdict, nats per character", *_verdicts(names, found.pairs)),
        section("Scores", table(SCORE_COLUMNS, score_rows(found)), _scores(found)),
        section("What differs in the configuration", differences_table(names, found.differences)),
        section("Validation loss", line_chart(found.curves, x_label=found.x, y_label="nats per character")),
        section("By kind of character", _differences(found.kinds, names), _parts("", found.kinds, names)),
        section("By position in the window", _differences(found.positions, names), _parts("tokens before", found.positions, names)),
        section("Most different passages", *_passages(names, found.passages)),
    ]
    if found.samples:
        prompt = tag("span", found.prompt or "", class_="dim")
        parts.append(section("From one prompt and seed", side_by_side([(name, [prompt, text]) for name, text in found.samples])))
    return html_page(" against ".join(names), parts)


def _verdicts(names: Sequence[str], pairs: Sequence[Pair]) -> list[Markup]:
    lines: list[Markup] = []
    for pair in pairs:
        lines.append(tag("p", verdict_sentence(pair), class_="verdict"))
        if pair.outlook and (further := outlook_sentence(pair.outlook)):
            lines.append(tag("p", further))
    return [*lines, _pair_intervals(names, pairs), *map(remark, scope_lines(pairs))]


def _pair_intervals(names: Sequence[str], pairs: Sequence[Pair]) -> Markup:
    """The difference of every pair with its interval, in the colour of the better side."""
    rows = []
    for pair in pairs:
        better = {"a_better": pair.a, "b_better": pair.b}.get(pair.verdict)
        test, colour = pair.test, names.index(better) % COLOURS if better else None
        rows.append(Interval(f"{pair.a} − {pair.b}", test.low, test.high, f"{test.mean:+.4f}", colour, test.mean))
    return interval_rows(rows, ends=_ends(names if len(pairs) == 1 else ("the first", "the second")))


def _ends(names: Sequence[str]) -> tuple[str, str]:
    return f"← {names[0]} is better", f"{names[1]} is better →"


def _scores(found: Compared) -> Markup:
    """The score of every side with its interval, best first."""
    sides = sorted(enumerate(found.sides), key=lambda entry: entry[1].group.mean)
    rows = [Interval(side.name, *side.ci95, f"{side.group.mean:.4f}", n % COLOURS, side.group.mean) for n, side in sides]
    return interval_rows(rows)


def _differences(parts: Sequence[Part], names: Sequence[str]) -> Markup:
    """Bars for two sides: how much better one is on every part, in its colour."""
    if len(names) != 2:
        return Markup()
    rows = []
    for part in parts:
        difference = part.nats_per_char[0] - part.nats_per_char[1]
        rows.append(Interval(part.name, min(0, difference), max(0, difference), f"{difference:+.3f}", int(difference > 0)))
    return interval_rows(rows, ends=_ends(names))


def _parts(title: str, parts: Sequence[Part], names: Sequence[str]) -> Markup:
    return table([Column(title), *(Column(name, right=True) for name in ("share", *names))], part_rows(parts))


def _passages(names: Sequence[str], passages: Sequence[Passage]) -> list[Markup]:
    if not passages:
        return []
    out = [remark("Coloured where that side needs fewer nats; a stronger colour means a larger difference.")]
    for passage in passages:
        out.append(remark(passage_sentence(names[0], names[1], passage)))
        out.append(side_by_side([(names[0], _coloured(passage, -1, 0)), (names[1], _coloured(passage, 1, 1))]))
    return out


def _coloured(passage: Passage, sign: int, colour: int) -> list[str]:
    pieces: list[str] = []
    for character, difference in zip(passage.text, passage.differences.tolist(), strict=True):
        if character == "\r":  # of a line end on Windows
            continue
        strength = sign * difference / _STRONG
        about = f"{-abs(difference):.2f} nats"
        pieces.append(tinted(character, strength, colour, about) if strength >= 0.1 else character)
    return pieces
