"""Curves in the terminal, with uniplot, which is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minigpt_cli.display import console
from minigpt_cli.escaping import one_line


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]


def chart_on_screen(curves: Sequence[Curve], *, height: int) -> str:
    """Curves as wide as the screen that stdout goes to, at most 110 columns."""
    screen = console.stdout()
    return terminal_chart(curves, width=min(screen.width, 110), height=height, colour=screen.is_terminal and not screen.no_color)


def terminal_chart(curves: Sequence[Curve], *, width: int, height: int, colour: bool, x_unit: str = "", title: str | None = None) -> str:
    """Curves drawn with block characters in at most `width` columns; several get a legend. An empty text where there is nothing to draw."""
    from uniplot import plot_to_string

    drawn = [curve for curve in curves if len(curve.xs)]
    if not drawn or width < 30:
        return ""
    ys = [y for curve in drawn for y in curve.ys]
    margin = 0.05 * (max(ys) - min(ys)) or 0.5
    extra = {"title": title} if title else {}
    return str(
        plot_to_string(
            ys=[list(curve.ys) for curve in drawn],
            xs=[list(curve.xs) for curve in drawn],
            lines=True,
            width=width - 12,  # room for the labels of the y axis
            height=height,
            line_length_hard_cap=width,
            color=["cyan", "magenta", "yellow", "green", "blue", "red"][: len(drawn)] if colour and len(drawn) <= 6 else colour,
            legend_labels=[one_line(curve.label) for curve in drawn] if len(drawn) > 1 else None,
            x_unit=x_unit,
            y_min=min(ys) - margin,
            y_max=max(ys) + margin,
            y_gridlines=[],
            x_gridlines=[],
            rounded_corners=True,
            **extra,
        )
    )
