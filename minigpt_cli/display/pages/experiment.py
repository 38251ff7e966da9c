"""The answer of an experiment as one HTML page: the paragraph, the scores with their intervals, the table, and a chart."""

from __future__ import annotations

from minigpt_cli.display.experiments import Answer
from minigpt_cli.display.pages.chart import line_chart
from minigpt_cli.display.pages.intervals import Interval, interval_rows
from minigpt_cli.display.pages.page import COLOURS, Markup, html_page, section, table, tag


def experiment_page(found: Answer) -> str:
    """The page."""
    bars = [Interval(label, *ci95, f"{mean:.4f}", n % COLOURS, mean) for n, (label, mean, ci95) in enumerate(found.scores)]
    chart = line_chart(found.chart.curves, x_label=found.chart.x, y_label=found.chart.y)
    parts = [
        section("Answer", tag("p", " ".join(found.sentences))),
        section("Nats per character, with 95 % intervals", interval_rows(bars)) if len(bars) > 1 else Markup(),
        section("Table", table(found.columns, found.rows)),
        section("Chart", chart),
        section("Next", tag("pre", found.next)),
    ]
    return html_page(found.question, parts)
