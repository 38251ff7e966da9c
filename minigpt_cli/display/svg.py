"""A line chart as inline SVG that takes its colours from the page around it (--c0 to --c6, --ink, --rule). No dependency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from minigpt_cli.display.charts import Curve
from minigpt_cli.escaping import html

_WIDTH, _HEIGHT = 860, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 48
_DASHES = ("", "8 4", "2 4", "10 4 2 4")
_COLOURS = 7


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str, marks: Sequence[tuple[float, float, str]] = ()) -> str:
    """The curves, with a legend where there are several, and marks (x, y, a sign); empty where there is nothing to draw."""
    drawn = [curve for curve in curves if len(curve.xs)]
    if not drawn:
        return ""
    x_ticks = _ticks(0, max(max(curve.xs) for curve in drawn))
    ys = [y for curve in drawn for y in curve.ys if math.isfinite(y)]
    y_ticks = _ticks(min(ys), max(ys))
    x_low, x_high, y_low, y_high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> str:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (y_high - y) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [_axes(x_ticks, y_ticks, at, x_label, y_label)]
    for number, curve in enumerate(drawn):
        points = " ".join(at(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(y))
        title = f"<title>{html(curve.label)}</title>"
        parts.append(f'<polyline points="{points}" fill="none" stroke-width="2" {_stroke(number)}>{title}</polyline>')
    for x, y, sign in marks:
        across, down = at(x, y).split(",")
        parts.append(f'<text x="{across}" y="{float(down) + 6:.1f}" text-anchor="middle" style="font-size: 19px">{html(sign)}</text>')
    if len(drawn) > 1:
        parts += [_legend(number, curve.label) for number, curve in enumerate(drawn)]
    described = html(f"{y_label} against {x_label}: {', '.join(curve.label for curve in drawn)}")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{described}">{"".join(parts)}</svg>'


def _stroke(number: int) -> str:
    dash = _DASHES[number % len(_DASHES)]
    return f'style="stroke: var(--c{number % _COLOURS})"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], place: Callable[[float, float], str], x_label: str, y_label: str) -> str:
    parts = []
    for x in x_ticks:
        left, bottom = place(x, y_ticks[0]).split(",")
        parts.append(f'<text x="{left}" y="{float(bottom) + 18:.1f}" text-anchor="middle">{_short(x)}</text>')
    for y in y_ticks:
        left, down = place(x_ticks[0], y).split(",")
        right = place(x_ticks[-1], y).split(",")[0]
        parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{float(left) - 8:.1f}" y="{float(down) + 4:.1f}" text-anchor="end">{y:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{html(x_label)}</text>')
    parts.append(f'<text transform="translate(14 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{html(y_label)}</text>')
    return "".join(parts)


def _legend(number: int, label: str) -> str:
    y = _TOP + 16 + 20 * number
    x = _WIDTH - _RIGHT - 250
    shown = label if len(label) <= 30 else label[:29] + "…"
    line = f'<line x1="{x}" x2="{x + 28}" y1="{y}" y2="{y}" stroke-width="2" {_stroke(number)}/>'
    return line + f'<text x="{x + 36}" y="{y + 4}">{html(shown)}</text>'


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
