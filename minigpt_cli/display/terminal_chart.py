"""Curves on the terminal, in the dots of Braille characters: the y axis on the left, each line named at its end.

Without colour the lines still look different: the first is solid, the others are dotted or dashed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from minigpt_cli.escaping import one_line

COLOURS = (32, 166, 29, 170, 136, 244)  # of 256: blue and orange first: clear on black, on white and to colour-blind people
_PATTERNS = ((1, 0), (1, 1), (3, 2), (5, 2))  # dot columns drawn and left out
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a character, by row and column
_LONGEST_LABEL = 20
_FEWEST_COLUMNS = 13  # for the curves: room for any number below them


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    xs: Sequence[float]  # rising
    ys: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None  # lowest and highest y of the seeds whose mean this is


def shortened(name: str, most: int) -> str:
    """The name without its middle, if it is longer than `most`: names often differ in their ends."""
    return name if len(name) <= most else f"{name[: most - 1 - most // 2]}…{name[-(most // 2) :]}"


def terminal_chart(curves: Sequence[Curve], *, width: int, height: int, colour: bool) -> str:
    """Curves in at most `width` columns and `height` + 2 lines. Empty if there is nothing to draw or no room."""
    drawn = [curve for curve in curves if len(curve.xs)]
    if not drawn or width < 30 or height < 3:
        return ""
    low, high = min(min(curve.ys) for curve in drawn), max(max(curve.ys) for curve in drawn)
    margin = 0.05 * (high - low) or 0.5
    low, high = low - margin, high + margin
    ticks = _ticks(low, high, height)
    left = max(map(len, ticks.values()))
    labels = _end_labels(drawn, low, high, height) if len(drawn) > 1 else {}
    right = max((len(label) + 1 for _, label in labels.values()), default=0)
    columns = width - left - 2 - right
    if columns < _FEWEST_COLUMNS:
        return ""
    first, last = min(curve.xs[0] for curve in drawn), max(curve.xs[-1] for curve in drawn)
    cells = _cells(drawn, (first, last), (low, high), columns, height)
    lines = []
    for row in range(height):
        body = "".join(
            _paint("".join(chr(0x2800 + dots) if dots else " " for dots, _ in group), number, colour)
            for number, group in groupby(cells[row], key=lambda cell: cell[1])
        )
        number, label = labels.get(row, (0, ""))
        lines.append(f"{ticks.get(row, ''):>{left}} │{body}" + (f" {_paint(label, number, colour)}" if label else ""))
    start, end = f"{first:,.6g}", f"{last:,.6g}"
    if len(start) + len(end) >= columns:
        start = ""
    lines.append(" " * (left + 1) + "└" + "─" * columns)
    lines.append(" " * (left + 2) + start + end.rjust(columns - len(start)))
    return "\n".join(line.rstrip() for line in lines)


def _paint(text: str, number: int, colour: bool) -> str:
    return f"\x1b[38;5;{COLOURS[number % len(COLOURS)]}m{text}\x1b[0m" if colour and text.strip() else text


def _ticks(low: float, high: float, height: int) -> dict[int, str]:
    """Labels of the y axis by row."""
    count = max(2, min(5, height // 2))
    rows = [round(i * (height - 1) / (count - 1)) for i in range(count)]
    values = [high - (row + 0.5) * (high - low) / height for row in rows]
    digits = next((n for n in range(6) if len({f"{value:.{n}f}" for value in values}) == count), 6)
    return {row: f"{value:.{max(1, digits)}f}" for row, value in zip(rows, values, strict=True)}


def _end_labels(curves: Sequence[Curve], low: float, high: float, height: int) -> dict[int, tuple[int, str]]:
    """The number and the label of each curve by the row where it ends, or a free row near it."""
    labels: dict[int, tuple[int, str]] = {}
    for number, curve in enumerate(curves[:height]):
        wanted = min(height - 1, int((high - curve.ys[-1]) / (high - low) * height))
        row = min((row for row in range(height) if row not in labels), key=lambda row: abs(row - wanted))
        labels[row] = (number, shortened(one_line(curve.label), _LONGEST_LABEL))
    return labels


def _cells(
    curves: Sequence[Curve], xs: tuple[float, float], ys: tuple[float, float], columns: int, height: int
) -> list[list[tuple[int, int]]]:
    """The dots of each character and the number of the curve that it belongs to."""
    cells = [[(0, 0)] * columns for _ in range(height)]
    for number, curve in enumerate(curves):
        on, off = _PATTERNS[number % len(_PATTERNS)]
        before: int | None = None
        for dot_x in range(2 * columns):
            x = xs[0] + (xs[1] - xs[0]) * dot_x / max(1, 2 * columns - 1)
            if not curve.xs[0] <= x <= curve.xs[-1]:
                continue
            dot_y = min(4 * height - 1, int((ys[1] - _at(curve, x)) / (ys[1] - ys[0]) * 4 * height))
            if dot_x % (on + off) < on:
                start = dot_y if before is None else before + (dot_y > before) - (dot_y < before)
                for y in range(min(start, dot_y), max(start, dot_y) + 1):
                    dots, _ = cells[y // 4][dot_x // 2]
                    cells[y // 4][dot_x // 2] = (dots | _DOTS[y % 4][dot_x % 2], number)
            before = dot_y
    return cells


def _at(curve: Curve, x: float) -> float:
    """The height of the curve at `x`, in a straight line between its points."""
    after = bisect_left(curve.xs, x)
    if after == 0 or curve.xs[after] == x:
        return curve.ys[after]
    (x0, x1), (y0, y1) = curve.xs[after - 1 : after + 1], curve.ys[after - 1 : after + 1]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
