"""Curves as PNG or SVG with matplotlib (the extra `plot`, imported only to draw); terminal_chart.py draws them on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import console
from minigpt_cli.display.terminal_chart import Curve, terminal_chart
from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.escaping import one_line
from minigpt_cli.storage.atomic_io import write_atomic

if TYPE_CHECKING:
    from minigpt_cli.events import Evaluated


# Okabe and Ito's palette: colour-blind people can distinguish it, on white and on near-black.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999")
_DASHES = ("-", "--", "-.", ":")
_LIGHT = {"figure.facecolor": "#ffffff", "text.color": "#1b1b1b", "axes.edgecolor": "#888888", "grid.color": "#dddddd"}
_DARK = {"figure.facecolor": "#16181d", "text.color": "#e8e8e8", "axes.edgecolor": "#888888", "grid.color": "#3a3d45"}


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
    """Write `curves` to a .png or .svg file, atomically. Raises UsageError for another ending, MissingExtra without matplotlib."""
    ending = path.suffix.lower()
    if ending not in (".png", ".svg"):
        raise UsageError(f"{path} does not end in .png, .svg or .html: choose one")
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}: make it first")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("drawing PNG and SVG", "plot") from None
    colours = _DARK if dark else _LIGHT
    ink = colours["text.color"]
    settings: Any = colours | {
        "axes.facecolor": colours["figure.facecolor"], "savefig.facecolor": colours["figure.facecolor"], "axes.labelcolor": ink,
        "xtick.color": ink, "ytick.color": ink, "font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "minigpt",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8, 4.5))
        axes = figure.add_subplot()
        for position, curve in enumerate(curves):
            dash = _DASHES[position // len(PALETTE) % len(_DASHES)]
            label = one_line(curve.label).replace("$", r"\$")  # matplotlib reads text between dollars as a formula
            axes.plot(curve.xs, curve.ys, dash, color=PALETTE[position % len(PALETTE)], linewidth=1.8, label=f" {label}")
        if marks:
            axes.plot([x for x, _ in marks], [y for _, y in marks], "*", color=ink, markersize=11, linestyle="none", label=" best")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(visible=True, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.legend(frameon=False)
    picture = BytesIO()
    figure.savefig(picture, format=ending[1:], dpi=160, bbox_inches="tight")
    write_atomic(path, picture.getvalue())
