"""The report of one run or several as one HTML page: curves, learning rate, speed, expert load, leaderboard, settings, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minigpt_cli.display import format
from minigpt_cli.display.charts import Curve
from minigpt_cli.display.page import html_page, html_table
from minigpt_cli.display.run_tables import leaderboard_markdown
from minigpt_cli.display.svg import line_chart
from minigpt_cli.escaping import html
from minigpt_cli.events import Evaluated

if TYPE_CHECKING:
    from minigpt_cli.evaluation.leaderboard import Row
    from minigpt_cli.runstore.records import RunRecord

_BEST, _END = "★", "■"


@dataclass(frozen=True)
class Reported:
    """What a report shows of one run."""

    record: RunRecord
    evaluations: Sequence[Evaluated]
    settings: Sequence[tuple[str, str]]  # those that are not defaults
    status: str
    sample: str = ""


@dataclass(frozen=True)
class Report:
    """What a report shows."""

    runs: Sequence[Reported]
    rows: Sequence[Row]  # of the leaderboard
    differences: Sequence[tuple[str, Sequence[str]]] = field(default_factory=list)


def report_page(report: Report) -> str:
    """The page."""
    names = [run.record.name for run in report.runs]
    shown = {row.run for row in report.rows} & set(names)
    best = next((n for n, row in enumerate(report.rows) if row.run in shown), None)
    parts = [f'<p class="dim">{html(_summary(run))}</p>' for run in report.runs]
    parts += ["<h2>Loss</h2>", f'<p class="dim">{_BEST} best validation step, {_END} where training stopped</p>', _losses(report.runs)]
    parts += _optional("Learning rate", [Curve(r.record.name, *_series(r, "lr")) for r in report.runs], "learning rate")
    parts += _optional(
        "Speed", [Curve(r.record.name, *_series(r, "tokens_per_s", 1e-3)) for r in report.runs], "thousand tokens per second"
    )
    parts += [part for run in report.runs for part in _experts(run)]
    if report.rows:
        columns, cells, right = leaderboard_markdown(report.rows)
        parts += ["<h2>Leaderboard</h2>", html_table(columns, cells, right, best)]
    if len(names) > 1:
        parts += ["<h2>What differs</h2>", html_table(["setting", *names], [[name, *row] for name, row in report.differences])]
    for run in report.runs:
        parts += [f"<h2>Settings of {html(run.record.name)}</h2>", html_table(["setting", "value"], [list(pair) for pair in run.settings])]
    parts += [f"<h2>{html(run.record.name)} writes</h2><pre>{html(run.sample)}</pre>" for run in report.runs if run.sample]
    return html_page(" and ".join(names), parts)


def _summary(run: Reported) -> str:
    record = run.record
    best = record.best
    score = f"{best.nats_per_char:.4f} nats per character {format.plus_minus(best.nats_per_char, best.ci95)}" if best else "not scored"
    text_label = f" on {record.corpus.label}" if record.corpus else ""
    return (
        f"{record.name}: {record.arch}, {record.n_params:,} parameters{text_label}; {score.strip()}; "
        f"{record.stop_step:,} steps in {format.duration(record.elapsed_s)}; {record.stop_reason or run.status}"
    )


def _series(run: Reported, name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    points = [(float(event.step), scale * float(value)) for event in run.evaluations if (value := getattr(event, name)) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _losses(runs: Sequence[Reported]) -> str:
    """One run: training and validation loss. Several: the validation loss of each, in nats per character."""
    single = len(runs) == 1
    measure = "val_loss" if single else "nats_per_char"
    curves, marks = [], []
    for run in runs:
        if single:
            curves.append(Curve("training", *_series(run, "train_loss")))
        curves.append(Curve("validation" if single else run.record.name, *_series(run, measure)))
        best = next((event for event in reversed(run.evaluations) if event.is_best), None)
        for event, sign in ((run.evaluations[-1] if run.evaluations else None, _END), (best, _BEST)):
            if event is not None and (value := getattr(event, measure)) is not None and not (sign == _END and event == best):
                marks.append((float(event.step), float(value), sign))
    return line_chart(curves, x_label="steps", y_label="nats per token" if single else "nats per character", marks=marks)


def _optional(title: str, curves: Sequence[Curve], y_label: str) -> list[str]:
    chart = line_chart(curves, x_label="steps", y_label=y_label)
    return [f"<h2>{title}</h2>", chart] if chart else []


def _experts(run: Reported) -> list[str]:
    """The share of tokens of every expert at the last evaluation, a row for each layer; even shares look alike."""
    load = next((event.expert_load for event in reversed(run.evaluations) if event.expert_load), None)
    if load is None:
        return []
    head = "".join(f"<th>{expert}</th>" for expert in range(max(map(len, load))))
    rows = ""
    for layer, shares in enumerate(load):
        cells = "".join(f'<td class="share right" style="--s:{min(1.0, share * len(shares) / 2):.2f}">{share:.1%}</td>' for share in shares)
        rows += f"<tr><th>layer {layer}</th>{cells}</tr>"
    caption = f'<p class="dim">{html(run.record.name)}: share of the tokens by layer and expert, at the last evaluation</p>'
    return ["<h2>Expert load</h2>", caption, f'<div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div>']
