"""Rows of a label, an interval or bar on a common scale, and figures: HTML and CSS alone, so that text keeps its size on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minigpt_cli.display.pages.page import Markup, tag


@dataclass(frozen=True)
class Interval:
    """One row. Without `at` it is a bar from 0 to its other end."""

    label: str
    low: float
    high: float
    figures: str
    colour: int | None  # of the chart colours; None: grey
    at: float | None = None


def interval_rows(rows: Sequence[Interval], *, ends: tuple[str, str] = ("", "")) -> Markup:
    """The rows under one scale. With `ends`, which say what left and right mean, 0 is marked in the middle."""
    if not rows:
        return Markup()
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    around_zero = any(ends)
    if around_zero:
        high = max(-low, high)
        low = -high
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin
    zero = [_mark("u", (0, 0), low, high)] if around_zero else []
    parts = []
    for row in rows:
        colour = _colour(row)
        marks = [_mark("i", (row.low, row.high), low, high, "bar" if row.at is None else "", colour)]
        if row.at is not None:
            marks.append(_mark("b", (row.at, row.at), low, high, "", colour))
        parts += _row(row.label, tag("div", *zero, *marks, class_="track", aria_hidden="true"), row.figures)
    left, right = ends if around_zero else (f"{low:.3g}", f"{high:.3g}")
    parts += _row("", tag("div", tag("span", left), tag("span", right), class_="scale dim"), "")
    return tag("div", *parts, class_="intervals")


def bar_rows(rows: Sequence[Interval], full: float) -> Markup:
    """Bars from 0; the value `full` has the whole width."""
    parts = []
    for row in rows:
        track = tag("div", _mark("i", (0, row.high), 0, full, "bar", _colour(row)), class_="track", aria_hidden="true")
        parts += _row(row.label, track, row.figures)
    return tag("div", *parts, class_="intervals")


def _row(label: str, track: Markup, figures: str) -> list[Markup]:
    return [tag("span", label, class_="label"), track, tag("span", figures, class_="figures")]


def _colour(row: Interval) -> str:
    return "var(--dim)" if row.colour is None else f"var(--c{row.colour})"


def _mark(name: str, between: tuple[float, float], low: float, high: float, css: str = "", colour: str = "") -> Markup:
    start, end = ((value - low) / (high - low) for value in between)
    width = f";width:{end - start:.2%}" if end > start else ""
    return tag(name, class_=css, style=f"left:{start:.2%}{width}{f';background:{colour}' if colour else ''}")
