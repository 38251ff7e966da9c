"""Curves as PNG, SVG or PDF with matplotlib (the extra `plot`, imported only to draw); terminal_chart.py draws them on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import console
from minigpt_cli.display.pages.page import COLOURS, theme_colours
from minigpt_cli.display.terminal_chart import Curve, terminal_chart
from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.escaping import one_line
from minigpt_cli.storage.atomic_io import check_parent, write_atomic

if TYPE_CHECKING:
    from minigpt_cli.events import Evaluated


_DASHES = ("-", "--", "-.", ":")
_LABEL_GAP = 0.055  # of the height of the chart, between the middles of two labels


def curve_of(label: str, evaluations: Iterable[Evaluated], y: str, x: str = "step", scale: float = 1.0) -> Curve:
    """One field of evaluations against another, without unknown values; y is multiplied by `scale`."""
    points = [(float(getattr(event, x)), scale * float(value)) for event in evaluations if (value := getattr(event, y)) is not None]
    return Curve(label, [x for x, _ in points], [y for _, y in points])


def chart_on_screen(curves: Sequence[Curve], *, height: int, most: int = 110) -> str:
    """Curves as wide as the terminal of stdout, at most `most` columns."""
    screen = console.stdout()
    return terminal_chart(curves, width=min(screen.width, most), height=height, colour=screen.is_terminal and not screen.no_color)


def save_chart(
    path: Path, curves: Sequence[Curve], *, x_label: str, y_label: str, dark: bool = False, marks: Sequence[tuple[float, float]] = ()
) -> None:
    """Write `curves`, each named at its end, to a .png, .svg or .pdf file, atomically. Raises UsageError for another ending, MissingExtra
    without matplotlib."""
    ending = path.suffix.lower()
    if ending not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{path} does not end in .png, .svg, .pdf or .html: choose one")
    check_parent(path)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("drawing PNG, SVG and PDF", "plot") from None
    colours = theme_colours(dark=dark)
    ink, paper = colours["ink"], colours["paper"]
    settings: Any = {
        "figure.facecolor": paper, "axes.facecolor": paper, "savefig.facecolor": paper, "text.color": ink, "axes.labelcolor": ink,
        "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": colours["dim"], "grid.color": colours["rule"],
        "font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "minigpt", "pdf.fonttype": 42,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8, 4.5))
        axes = figure.add_subplot()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(visible=True, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        _draw(axes, [curve for curve in curves if len(curve.xs)], [colours[f"c{n}"] for n in range(COLOURS)])
        if marks:
            axes.plot([x for x, _ in marks], [y for _, y in marks], "*", color=ink, markersize=11, linestyle="none")
            axes.text(1, 1, "★ best", transform=axes.transAxes, horizontalalignment="right", verticalalignment="bottom")
        picture = BytesIO()
        undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(ending)  # the same picture is the same file
        figure.savefig(picture, format=ending[1:], dpi=160, bbox_inches="tight", metadata=undated)
    write_atomic(path, picture.getvalue())


def _draw(axes: Any, curves: Sequence[Curve], palette: Sequence[str]) -> None:
    """Draw the curves with their bands, and their names on the right, each as near to the end of its curve as the others let it."""
    for n, curve in enumerate(curves):
        colour, dash = palette[n % len(palette)], _DASHES[n // len(palette) % len(_DASHES)]
        axes.plot(curve.xs, curve.ys, dash, color=colour, linewidth=1.8)
        if curve.band is not None:
            axes.fill_between(curve.xs, *curve.band, color=colour, alpha=0.18, linewidth=0)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    places = apart([(curve.ys[-1] - low) / (high - low) for curve in curves], _LABEL_GAP)
    for n, (curve, place) in enumerate(zip(curves, places, strict=True)):
        label = one_line(curve.label).replace("$", r"\$")  # matplotlib reads text between dollars as a formula
        axes.text(1.01, place, label, transform=axes.transAxes, color=palette[n % len(palette)], verticalalignment="center")


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The places in the same order from low to high, moved so that neighbours are at least `gap` apart."""
    order = sorted(range(len(places)), key=lambda n: places[n])
    moved, lowest = list(places), float("-inf")
    for n in order:
        lowest = moved[n] = max(places[n], lowest)
        lowest += gap
    pushed = sum(moved) - sum(places)
    return [place - pushed / max(1, len(moved)) for place in moved]  # around where they belong, not all above it
