"""minigpt runs plot: curves of runs in the terminal, or as PNG, SVG, PDF or one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from minigpt_cli.commands.options import JsonFlag, OptionalRunArguments, RunsDir, check_page, option, switch
from minigpt_cli.commands.report import no_evaluations, write_report
from minigpt_cli.commands.run_fields import find_readable
from minigpt_cli.display import console
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.display.terminal_chart import Curve

X_FIELDS = {"steps": "step", "tokens": "tokens_seen", "seconds": "elapsed_s"}
_Y = {  # the field of an evaluation, and its name on the axis
    "val": ("val_loss", "validation loss (nats per token)"),
    "train": ("train_loss", "training loss (nats per token)"),
    "nats-per-char": ("nats_per_char", "validation loss (nats per character)"),
    "lr": ("lr", "learning rate"),
    "speed": ("tokens_per_s", "speed (tokens per second)"),
}


def plot(
    run: OptionalRunArguments = None,
    x: Annotated[Literal["steps", "tokens", "seconds"], typer.Option("--x", help="The horizontal axis.")] = "steps",
    y: Annotated[
        Literal["nats-per-char", "val", "train", "lr", "speed"],
        typer.Option("--y", help="The vertical axis; of one run the training loss is drawn too."),
    ] = "nats-per-char",
    out: Annotated[Path | None, option("FILE", "Write a .png, .svg, .pdf or .html file instead.", "--out", "-o")] = None,
    html: Annotated[Path | None, option("FILE", "Write a report page: curves, samples by step, settings, leaderboard.", "--html")] = None,
    dark: Annotated[bool, switch("--dark/--light", "Background of a .png, .svg or .pdf; a page follows the theme of the browser.")] = False,
    fold_seeds: Annotated[
        bool, switch("--fold-seeds", "One curve for all runs that differ only in their seed: the mean, and a band from lowest to highest.")
    ] = False,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs plot                      the newest run, in the terminal
      minigpt runs plot modern-1 moe-1 --x seconds
      minigpt runs plot 'lr-*' --fold-seeds
      minigpt runs plot modern-1 moe-1 --out curves.svg
      minigpt runs plot modern-1 --html report.html

    Draws the curves of one run or several in one chart, and marks the best step.
    """
    store = RunStore(runs_dir)
    chosen = find_readable(store, run or ["latest"])
    if not run and not json:
        console.notice(f"plotting {chosen[0].name}")
    check_page(html)
    page = html or (out if out is not None and out.suffix.lower() in (".html", ".htm") else None)
    if fold_seeds and (json or page is not None):
        raise UsageError("--fold-seeds is for one chart, and neither --json nor a page is one: leave it out, or give --out FILE.svg")
    if json:
        console.write_json([{"run": r.name, "evaluations": [e.model_dump(mode="json") for e in r.metrics()]} for r in chosen])
    elif page is not None:
        write_report(page, chosen, store)
        console.notice(f"wrote {page}")
    elif out is not None:
        from minigpt_cli.display.charts import save_chart

        curves, marks = _curves(chosen, x, y, fold_seeds), [] if fold_seeds else _marks(chosen, x, y)
        save_chart(out, curves, x_label=x, y_label=_label(chosen, y), dark=dark, marks=marks)
        console.notice(f"wrote {out}")
    else:
        from minigpt_cli.display.charts import chart_on_screen

        console.write(f"{_label(chosen, y)} against {x}\n{chart_on_screen(_curves(chosen, x, y, fold_seeds), height=16)}")


def _both_losses(runs: list[Run], y: str) -> bool:
    """Whether the training loss is drawn too: for one run, and then both losses are in nats per token."""
    return len(runs) == 1 and y in ("val", "nats-per-char")


def _label(runs: list[Run], y: str) -> str:
    from minigpt_cli.display.training_screen import loss_unit

    return f"loss ({loss_unit(list(runs[0].metrics()))})" if _both_losses(runs, y) else _Y[y][1]


def mean_of_runs(label: str, runs: Sequence[Run], x: str, y: str) -> Curve:
    """The curve of a run; of several the mean over the steps that all of them have, with its band."""
    from minigpt_cli.display.charts import curve_of
    from minigpt_cli.display.terminal_chart import Curve
    from minigpt_cli.evaluation.statistics import mean_curve

    each = [curve for run in runs if (curve := curve_of(label, run.metrics(), _Y[y][0], X_FIELDS[x])).xs]
    if len(each) < 2:
        return each[0] if each else Curve(label, [], [])
    return Curve(f"{label} (mean of {len(each)})", *mean_curve([(curve.xs, curve.ys) for curve in each]))


def _curves(runs: list[Run], x: str, y: str, fold_seeds: bool) -> list[Curve]:
    from minigpt_cli.evaluation.grouping import named_recipes

    if _both_losses(runs, y):
        curves = [mean_of_runs(label, runs, x, name) for label, name in (("train", "train"), ("validation", "val"))]
    else:
        groups = named_recipes(runs) if fold_seeds else [(run.name, [run]) for run in runs]
        curves = [mean_of_runs(name, group, x, y) for name, group in groups]
    if not any(curve.xs for curve in curves):
        raise UsageError(f"nothing to plot: {no_evaluations(runs)}")
    return curves


def _marks(runs: list[Run], x: str, y: str) -> list[tuple[float, float]]:
    """The point of the best validation step of each run."""
    marks = []
    field, _ = _Y["val" if _both_losses(runs, y) else y]
    for run in runs:
        best = next((event for event in reversed(list(run.metrics())) if event.is_best), None)
        if best is not None and (value := getattr(best, field)) is not None:
            marks.append((float(getattr(best, X_FIELDS[x])), float(value)))
    return marks
