"""minigpt runs plot: curves of runs in the terminal, or as PNG, SVG or one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from minigpt_cli.commands.options import JsonFlag, OptionalRunArguments, RunsDir
from minigpt_cli.commands.run_fields import find_readable
from minigpt_cli.display import console
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.store import Run, RunStore

_X = {"steps": "step", "tokens": "tokens_seen", "seconds": "elapsed_s"}
_Y = {"val": "val_loss", "train": "train_loss", "nats-per-char": "nats_per_char", "lr": "lr", "speed": "tokens_per_s"}
_UNITS = {"val": "nats per token", "train": "nats per token", "nats-per-char": "nats per character", "lr": "", "speed": "tokens per second"}


def plot(
    run: OptionalRunArguments = None,
    x: Annotated[Literal["steps", "tokens", "seconds"], typer.Option("--x", help="What to draw against.")] = "steps",
    y: Annotated[
        Literal["nats-per-char", "val", "train", "lr", "speed"],
        typer.Option("--y", help="What to draw; one run shows its training loss too."),
    ] = "nats-per-char",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write a .png, .svg or .html file instead.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report page: curves, settings, leaderboard.", show_default=False)
    ] = None,
    dark: Annotated[
        bool, typer.Option("--dark/--light", metavar="", help="Background of a .png or .svg; a page follows its reader.")
    ] = False,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs plot                      the newest run, in the terminal
      minigpt runs plot modern-1 moe-1 --x seconds
      minigpt runs plot modern-1 moe-1 --out curves.svg
      minigpt runs plot modern-1 --html report.html

    Draws curves of one run or several over each other, the best step marked.
    """
    store = RunStore(runs_dir)
    chosen = find_readable(store, run or ["latest"])
    if not run and not json:
        console.notice(f"plotting {chosen[0].name}")
    page = html or (out if out is not None and out.suffix.lower() in (".html", ".htm") else None)
    if json:
        console.write_json([{"run": r.name, "evaluations": [e.model_dump(mode="json") for e in r.metrics()]} for r in chosen])
    elif page is not None:
        from minigpt_cli.commands.report import write_report

        write_report(page, chosen, store)
    elif out is not None:
        from minigpt_cli.display.pictures import save_chart

        save_chart(out, _curves(chosen, x, y), x_label=x, y_label=_label(chosen, y), dark=dark, marks=_marks(chosen, x, y))
        console.notice(f"wrote {out}")
    else:
        _in_terminal(chosen, x, y)


def _both_losses(runs: list[Run], y: str) -> bool:
    """One run shows its training loss beside the validation loss, both in nats per token."""
    return len(runs) == 1 and y in ("val", "nats-per-char")


def _label(runs: list[Run], y: str) -> str:
    name = {
        "val": "validation loss",
        "train": "training loss",
        "nats-per-char": "validation loss",
        "lr": "learning rate",
        "speed": "speed",
    }[y]
    name, unit = ("loss", _UNITS["val"]) if _both_losses(runs, y) else (name, _UNITS[y])
    return f"{name} ({unit})" if unit else name


def _curves(runs: list[Run], x: str, y: str) -> list[Any]:
    from minigpt_cli.display.charts import Curve

    curves = []
    for run in runs:
        events = list(run.metrics())
        both = [("train", "train"), ("validation", "val")] if _both_losses(runs, y) else [("", y)]
        for part, name in both:
            points = [(getattr(e, _X[x]), value) for e in events if (value := getattr(e, _Y[name])) is not None]
            curves.append(Curve(part or run.name, [p for p, _ in points], [v for _, v in points]))
    if not any(curve.xs for curve in curves):
        raise UsageError(f"nothing to plot: {', '.join(r.name for r in runs)} {'have' if len(runs) > 1 else 'has'} no evaluations yet")
    return curves


def _marks(runs: list[Run], x: str, y: str) -> list[tuple[float, float]]:
    """Where the best validation step of each run lies."""
    marks = []
    name = "val" if _both_losses(runs, y) else y
    for run in runs:
        best = next((event for event in reversed(list(run.metrics())) if event.is_best), None)
        if best is not None and (value := getattr(best, _Y[name])) is not None:
            marks.append((float(getattr(best, _X[x])), float(value)))
    return marks


def _in_terminal(runs: list[Run], x: str, y: str) -> None:
    from minigpt_cli.display.charts import chart_on_screen

    console.write(f"{_label(runs, y)} against {x}\n{chart_on_screen(_curves(runs, x, y), height=16)}")
