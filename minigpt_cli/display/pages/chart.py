"""A line chart as inline SVG in the colours of the page: each curve is named at its end, on a phone above the chart. No dependency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from minigpt_cli.display.charts import apart
from minigpt_cli.display.pages.page import COLOURS, Markup, tag
from minigpt_cli.display.terminal_chart import Curve, shortened

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 14, 40
_DASHES = ("", "8 4", "2 4", "10 4 2 4")
_LETTER, _NAME_GAP, _LONGEST = 7.4, 19, 28  # width of a letter, height between two names at line ends, letters of a name there

Place = Callable[[float, float], tuple[float, float]]


def line_chart(
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[tuple[float, float, str]] = (),
    moments: Sequence[tuple[float, Sequence[float]]] = (),
) -> Markup:
    """The curves with marks (x, y, symbol), and their names if there are several; empty if there is nothing to draw. `moments` are a line
    across the chart at x and a dot at each y, which are seen only while a script gives one of them the class `chosen`."""
    drawn = [curve for curve in curves if len(curve.xs)]
    ys = [y for curve in drawn for line in (curve.ys, *(curve.band or ())) for y in line if math.isfinite(y)]
    if not ys:
        return Markup()
    x_ticks, y_ticks = _ticks(0, max([max(curve.xs) for curve in drawn] + [x for x, _ in moments])), _ticks(min(ys), max(ys))
    x_low, x_high, y_low, y_high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        return across, _TOP + (y_high - y) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = _axes(x_ticks, y_ticks, place)
    for number, curve in enumerate(drawn):
        places = (place(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(y))
        points = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        if curve.band is not None:
            edges = [*zip(curve.xs, curve.band[0], strict=True), *reversed([*zip(curve.xs, curve.band[1], strict=True)])]
            outline = " ".join(f"{across:.1f},{down:.1f}" for across, down in (place(x, y) for x, y in edges))
            parts.append(tag("polygon", points=outline, style=f"fill: var(--c{number % COLOURS})"))
        parts.append(tag("polyline", tag("title", curve.label), points=points, **_stroke(number)))
    for x, y, sign in marks:
        across, down = place(x, y)
        parts.append(_text(across, down + 6, sign, "mark"))
    for x, dots in moments:
        (across, top), (_, bottom) = place(x, y_high), place(x, y_low)
        circles = (tag("circle", cx=f"{across:.1f}", cy=f"{place(x, y)[1]:.1f}", r="5") for y in dots)
        parts.append(tag("g", _line(across, top, across, bottom), *circles, class_="moment"))
    about = f"{y_label} against {x_label}"
    described = f"{about}: {', '.join(curve.label for curve in drawn)}"
    if len(drawn) > 1:
        parts.append(tag("g", *_names_at_ends(drawn, place), class_="ends"))
    picture = tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=described)
    keys = [_key(number, curve.label) for number, curve in enumerate(drawn)] if len(drawn) > 1 else []
    room = f"--ends: {_LETTER * min(_LONGEST, max(len(curve.label) for curve in drawn)) + 22:.0f}px" if keys else ""
    return tag("figure", tag("figcaption", tag("span", about, class_="dim"), *keys), picture, class_="named" if keys else "", style=room)


def _names_at_ends(curves: Sequence[Curve], place: Place) -> list[Markup]:
    """The names right of the chart, each as near to the end of its curve as the others let it, behind a piece of its line."""
    ends = [place(x, y) for curve in curves for x, y in [(curve.xs[-1], next((y for y in reversed(curve.ys) if math.isfinite(y)), 0.0))]]
    parts = []
    for number, (curve, down) in enumerate(zip(curves, apart([down for _, down in ends], _NAME_GAP), strict=True)):
        left = _WIDTH - _RIGHT + 8
        name = _text(left + 24, down + 5, shortened(curve.label, _LONGEST), "name")
        parts += [_line(left, down, left + 18, down, class_="end", **_stroke(number)), name]
    return parts


def _stroke(number: int) -> dict[str, str]:
    return {"style": f"stroke: var(--c{number % COLOURS})", "stroke_dasharray": _DASHES[number % len(_DASHES)]}


def _text(across: float, down: float, text: str, css: str) -> Markup:
    return tag("text", text, x=f"{across:.1f}", y=f"{down:.1f}", class_=css)


def _line(x1: float, y1: float, x2: float, y2: float, **attributes: str) -> Markup:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", **attributes)


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], place: Place) -> list[Markup]:
    parts = []
    for x in x_ticks:
        across, down = place(x, y_ticks[0])
        parts.append(_text(across, down + 26, _short(x), "x"))
    for y in y_ticks:
        (left, down), (right, _) = place(x_ticks[0], y), place(x_ticks[-1], y)
        parts += [_line(left, down, right, down, class_="rule"), _text(left - 8, down + 5, f"{y:g}", "y")]
    return parts


def _key(number: int, label: str) -> Markup:
    sample = tag("svg", _line(0, 5, 28, 5, **_stroke(number)), viewBox="0 0 28 10", class_="key")
    return tag("span", sample, label, class_="named")


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers that enclose `low` to `high`."""
    scale = max(abs(low), abs(high))
    if not high - low > 1e-9 * scale:
        low, high = low - max(0.5, 1e-6 * scale), high + max(0.5, 1e-6 * scale)
    rough = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
