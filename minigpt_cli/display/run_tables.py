"""Runs as tables: the list, the leaderboard, one run in full, the differences between runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import console, format
from minigpt_cli.display.tables import Column, Style, print_renderable, print_table
from minigpt_cli.escaping import one_line, printable

if TYPE_CHECKING:
    from minigpt_cli.evaluation.leaderboard import Row
    from minigpt_cli.runstore.records import Annotations, RunRecord

_LIST = (
    Column("run", most=40),
    Column("status"),
    Column("arch"),
    Column("nats/char", right=True),
    Column("params", 2, right=True),
    Column("steps", 4, right=True),
    Column("time", 3, right=True),
    Column("text", 5, most=24),
    Column("tokenizer", 7, most=16),
    Column("started", 1),
    Column("tags", 6, most=24),
    Column("note", 8, most=40),
)
_STATUS_STYLE: Mapping[str, Style] = {"damaged": "bad", "crashed": "bad", "failed": "bad", "running": "best"}


def print_list(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print `runs list`: what `run_fields.listing` gives, a row each."""
    rows, styles = [], []
    for run in runs:
        styles.append(_STATUS_STYLE.get(run["status"], ""))
        if run["status"] == "damaged":
            rows.append([run["run"], "damaged", "", "", "", "", "", "", "", "", "", ""])
            continue
        rows.append(
            [
                run["run"],
                run["status"],
                run["arch"],
                format.loss(run["nats_per_char"]),
                format.count(run["n_params"]),
                f"{run['stop_step']:,}",
                format.duration(run["elapsed_s"]),
                run["corpus"] or "",
                run["tokenizer"],
                format.ago(run["created_at"]),
                " ".join(run["tags"]),
                run["note"],
            ]
        )
    print_table(_LIST, rows, styles=styles)
    for run in runs:
        if run["status"] == "damaged":
            console.notice(f"{run['run']}: {run['reason']}")


_LEADERBOARD = (
    Column("#", right=True),
    Column("run", most=40),
    Column("nats/char", right=True),
    Column("95 %", 1, right=True),
    Column(""),
    Column("arch"),
    Column("params", 2, right=True),
    Column("active", 8, right=True),
    Column("best at", 5, right=True),
    Column("steps", 6, right=True),
    Column("tokens", 4, right=True),
    Column("time", 3, right=True),
    Column("tokenizer", 7, most=16),
    Column("nats/token", 9, right=True),
    Column("status", 8),
)


def print_leaderboard(groups: Sequence[tuple[str, Sequence[Row]]]) -> None:
    """Print one table for each text: its title, and its rows best first."""
    for number, (title, rows) in enumerate(groups):
        if number and not console.is_terminal(sys.stdout):
            console.write("")
        styles: list[Style] = ["best" if row.rank == 1 else "dim" if row.status in ("failed", "crashed") else "" for row in rows]
        print_table(_LEADERBOARD, [_leaderboard_cells(row) for row in rows], styles=styles, title=title)
    if any(row.tied_with_best and row.rank > 1 for _, rows in groups for row in rows):
        console.notice("≈ cannot be told from the first; minigpt compare tests a pair")


def _leaderboard_cells(row: Row) -> list[str]:
    return [
        str(row.rank),
        row.run,
        format.loss(row.nats_per_char),
        format.plus_minus(row.nats_per_char, row.ci95),
        "≈" if row.tied_with_best and row.rank > 1 else "",
        row.arch,
        format.count(row.n_params),
        format.count(row.n_active_params) if row.n_active_params != row.n_params else "",
        f"{row.best_step:,}",
        f"{row.stop_step:,}",
        format.count(row.tokens_seen),
        format.duration(row.elapsed_s),
        row.tokenizer,
        format.loss(row.val_loss),
        row.status if row.status != "finished" else "",
    ]


def leaderboard_markdown(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], list[bool]]:
    """Names, cells and alignment of a leaderboard to paste."""
    shown = [(i, column) for i, column in enumerate(_LEADERBOARD) if column.name and column.name not in ("status", "active")]
    cells = [[_leaderboard_cells(row)[i] for i, _ in shown] for row in rows]
    for row, line in zip(rows, cells, strict=True):
        line[2] += " ≈" if row.tied_with_best and row.rank > 1 else ""
    return [column.name for _, column in shown], cells, [column.right for _, column in shown]


def print_run(record: RunRecord, status: str, annotations: Annotations, settings: Sequence[tuple[str, str]], chart: str) -> None:
    """Print one run in full: how it went, what it was, its settings where they differ from the defaults."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in [*_facts(record, status, annotations), *(settings and [("settings", "")])]:
        if value or name == "settings":
            grid.add_row(name, Text(printable(value)))
    for name, value in settings:
        grid.add_row(Text(f"  {one_line(name)}", style="not bold"), Text(one_line(value)))
    print_renderable(grid)
    if chart:
        print_renderable(Text.from_ansi("\n" + chart))


def _facts(record: RunRecord, status: str, annotations: Annotations) -> list[tuple[str, str]]:
    best, corpus = record.best, record.corpus
    score = ""
    if best is not None:
        score = f"{best.nats_per_char:.4f} nats per character" + (f", 95 %: {format.interval(best.ci95)}" if best.ci95 else "")
        score += f"; {best.nats_per_token:.4f} nats per token; step {best.step:,}" + (
            "" if best.whole_split else "; on samples of the split"
        )
    active = "" if record.n_active_params == record.n_params else f", {record.n_active_params:,} active"
    commit = f"{record.git_commit[:12]}{' with changes' if record.git_dirty else ''}" if record.git_commit else ""
    text = f"{corpus.label} (sha256 {corpus.sha256[:12]})" if corpus else ""
    sizes = (
        ", ".join(f"{name} {split.n_tokens:,} tokens / {split.n_chars:,} characters" for name, split in corpus.splits.items())
        if corpus
        else ""
    )
    return [
        ("run", record.name),
        ("status", status + (f": {record.stop_reason}" if record.stop_reason and record.stop_reason != status else "")),
        ("best", score),
        ("at the end", f"train {format.loss(record.final_train_loss)}, validation {format.loss(record.final_val_loss)} nats per token"),
        ("trained", f"{record.stop_step:,} steps, {record.tokens_seen:,} tokens, {format.duration(record.elapsed_s)}"),
        ("model", f"{record.arch}, {record.n_params:,} parameters{active}, vocabulary {record.vocab_size:,} ({record.tokenizer})"),
        ("text", text),
        ("", sizes),
        ("machine", ", ".join(filter(None, [record.device, record.device_name, f"{record.threads} threads" if record.threads else ""]))),
        ("versions", ", ".join(f"{name} {number}" for name, number in record.versions.items())),
        ("commit", commit),
        ("command", " ".join(record.argv)),
        ("preset", record.preset or ""),
        ("group", record.group or ""),
        ("begun", f"{record.created_at} ({format.ago(record.created_at)})"),
        (
            "resumed",
            ", ".join(f"at {session.step:,}{'' if session.exact else ' (not exactly)'}" for session in record.resume_exact_history),
        ),
        ("from", f"{record.base.run} (sha256 {record.base.sha256[:12]})" if record.base else ""),
        ("tags", " ".join(annotations.tags)),
        ("note", annotations.note),
    ]


def print_differences(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print what differs between runs: a row for each setting or result, a column for each run."""
    if not rows:
        console.write("no difference")
        return
    columns = [Column("", most=28), *(Column(one_line(name), most=28) for name in names)]
    print_table(columns, [[label, *values] for label, values in rows])
