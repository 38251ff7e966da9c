"""The report of one run or several as one HTML page: score, sample and loss first and large, with what was written at each step; then
settings, other curves, leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from minigpt_cli.display import format
from minigpt_cli.display.charts import curve_of
from minigpt_cli.display.pages.chart import line_chart
from minigpt_cli.display.pages.page import (
    Markup,
    asset,
    differences_table,
    html_page,
    in_columns,
    remark,
    section,
    side_by_side,
    table,
    tag,
    tinted,
)
from minigpt_cli.display.pages.samples import Written, sampled_steps, samples_with_slider, slider_data
from minigpt_cli.display.run_tables import leaderboard_table
from minigpt_cli.display.tables import Column
from minigpt_cli.display.terminal_chart import Curve
from minigpt_cli.display.training_screen import REASONS, loss_unit
from minigpt_cli.events import Evaluated, Sampled
from minigpt_cli.runstore.weights import kept_steps

if TYPE_CHECKING:
    from minigpt_cli.evaluation.leaderboard import Row
    from minigpt_cli.runstore.records import RunRecord

_BEST, _END = "★", "■"
_HOW = remark("Drag, or press ← and →: the same beginning, continued by the model of each step; the line in the chart above is that step.")


@dataclass(frozen=True)
class Reported:
    """What a report shows of one run."""

    record: RunRecord
    evaluations: Sequence[Evaluated]
    settings: Sequence[tuple[str, str]]  # those that are not defaults
    status: str
    sample: str = ""
    samples: Sequence[Sampled] = ()  # written while it was trained, oldest first


def report_page(
    runs: Sequence[Reported],
    boards: Sequence[tuple[str, Sequence[Row]]],
    differences: Sequence[tuple[str, Sequence[str]]],
    *,
    reload_s: float = 0.0,
) -> str:
    """The page: the runs, the leaderboard of each of their texts (title, rows), and the settings in which the runs differ. With `reload_s`
    it loads itself again after so many seconds."""
    names = [run.record.name for run in runs]
    written = [Written(run.record.name, run.samples, kept_steps(run.record)) for run in runs]
    samples = [(f"{run.record.name} writes", [run.sample]) for run in runs if run.sample]
    settings = (section(f"Settings of {run.record.name}", table([Column("setting"), Column("value")], run.settings)) for run in runs)
    learning_rate = line_chart(_curves(runs, "lr"), x_label="steps", y_label="learning rate")
    speed = line_chart(_curves(runs, "tokens_per_s", 1e-3), x_label="steps", y_label="thousand tokens per second")
    parts = [
        in_columns(_summary(run, alone=len(runs) == 1) for run in runs),
        tag("div", side_by_side(samples), class_="large") if samples else Markup(),
        section("Loss", remark(f"{_BEST} best validation step, {_END} where training stopped"), _losses(runs, sampled_steps(written))),
        section("What it wrote as it learned", _HOW if any(run.samples for run in written) else "", samples_with_slider(written)),
        section("What differs", differences_table(names, differences)) if len(runs) > 1 else Markup(),
        in_columns(settings),
        in_columns([section("Learning rate", learning_rate), section("Speed", speed)]),
        *(section("Expert load", *_experts(run)) for run in runs),
        *(_leaderboard(title, rows, names) for title, rows in boards),
    ]
    if not (reload_s or any(run.samples for run in runs)):
        return html_page(" and ".join(names), parts)
    return html_page(" and ".join(names), parts, script=asset("samples.js"), data=slider_data(written, reload_s=reload_s))


def _leaderboard(title: str, rows: Sequence[Row], names: Sequence[str]) -> Markup:
    best = next((n for n, row in enumerate(rows) if row.run in names), None)
    return section("Leaderboard" + (f": {title}" if title else ""), table(*leaderboard_table(rows), best))


def _summary(run: Reported, *, alone: bool) -> Markup:
    """The score, large, and a line about the run."""
    record, best = run.record, run.record.best
    ended = REASONS[record.stop_reason] if record.stop_reason else run.status
    text_label = f" on {record.corpus.label}" if record.corpus else ""
    model = f"{record.arch}, {record.n_params:,} parameters{text_label}"
    about = f"{model}; {record.stop_step:,} steps in {format.duration(record.elapsed_s)}; {ended}"
    score = tag("p", "not scored", class_="dim")
    if best:
        unit = f" nats per character {format.plus_minus(best.nats_per_char, best.ci95).strip()}"
        score = tag("p", f"{best.nats_per_char:.4f}", tag("span", unit), class_="score")
    return tag("div", Markup() if alone else tag("strong", record.name), score, remark(about))


def _curves(runs: Sequence[Reported], name: str, scale: float = 1.0) -> list[Curve]:
    return [curve_of(run.record.name, run.evaluations, name, scale=scale) for run in runs]


def _losses(runs: Sequence[Reported], steps: Sequence[int]) -> Markup:
    """One run: training and validation loss. Several: the validation loss of each, in nats per character. `steps` can be pointed at."""
    if len(runs) == 1:
        measure, unit = "val_loss", loss_unit(runs[0].evaluations)
        curves = [curve_of("training", runs[0].evaluations, "train_loss"), curve_of("validation", runs[0].evaluations, measure)]
    else:
        measure, unit = "nats_per_char", "nats per character"
        curves = _curves(runs, measure)
    marks = []
    for run in runs:
        best = next((event for event in reversed(run.evaluations) if event.is_best), None)
        for event, sign in ((run.evaluations[-1] if run.evaluations else None, _END), (best, _BEST)):
            if event is not None and (value := getattr(event, measure)) is not None and not (sign == _END and event == best):
                marks.append((float(event.step), float(value), sign))
    judged = [curve for curve in curves[-len(runs) :] if len(curve.xs)]
    moments = [(float(step), [float(np.interp(step, curve.xs, curve.ys)) for curve in judged]) for step in steps]
    return line_chart(curves, x_label="steps", y_label=unit, marks=marks, moments=moments)


def _experts(run: Reported) -> list[Markup]:
    """The share of tokens of every expert at the last evaluation, a row for each layer; equal shares have equal colours."""
    load = next((event.expert_load for event in reversed(run.evaluations) if event.expert_load), None)
    if load is None:
        return []
    columns = [Column(""), *(Column(f"expert {number}", right=True) for number in range(max(map(len, load))))]
    rows = [[f"layer {n}", *(tinted(f"{share:.1%}", share * len(shares) / 2, 0) for share in shares)] for n, shares in enumerate(load)]
    caption = remark(f"{run.record.name}: share of the tokens by layer and expert, at the last evaluation")
    return [caption, table(columns, rows)]
