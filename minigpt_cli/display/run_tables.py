"""Tables of runs: the list, the leaderboard, one run in full, the differences between runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import console, format
from minigpt_cli.display.tables import Column, Fields, Style, cells_of, print_renderable, print_table
from minigpt_cli.display.training_screen import REASONS
from minigpt_cli.escaping import one_line, printable
from minigpt_cli.runstore.weights import kept_steps
from minigpt_cli.storage.atomic_io import size

if TYPE_CHECKING:
    from minigpt_cli.evaluation.leaderboard import Folded, Row
    from minigpt_cli.runstore.records import Annotations, Corpus, RunRecord

_LIST: Fields[Mapping[str, Any]] = (
    (Column("run", most=40), lambda run: run["run"]),
    (Column("status"), lambda run: run["status"]),
    (Column("arch"), lambda run: run["arch"]),
    (Column("nats/char", right=True), lambda run: format.loss(run["nats_per_char"]) + " †" * bool(run["without"])),
    (Column("params", 2, right=True), lambda run: format.count(run["n_params"])),
    (Column("steps", 4, right=True), lambda run: f"{run['stop_step']:,}"),
    (Column("time", 3, right=True), lambda run: format.duration(run["elapsed_s"])),
    (Column("text", 5, most=24), lambda run: run["corpus"] or ""),
    (Column("tokenizer", 7, most=16), lambda run: run["tokenizer"]),
    (Column("started", 1), lambda run: format.ago(run["created_at"])),
    (Column("tags", 6, most=24), lambda run: " ".join(run["tags"])),
    (Column("note", 8, most=40), lambda run: run["note"]),
)
_STATUS_STYLE: Mapping[str, Style] = {"damaged": "bad", "crashed": "bad", "failed": "bad", "running": "best"}

_ADDRESSES, _FILES = 5, 3  # that are shown of what came from the network
_STEPS = 10  # kept steps that are shown


def print_list(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print `runs list`: one row for each result of `run_fields.listing`."""
    damaged = [run for run in runs if run["status"] == "damaged"]
    rows = [[run["run"], "damaged", *[""] * (len(_LIST) - 2)] if run in damaged else [show(run) for _, show in _LIST] for run in runs]
    print_table([column for column, _ in _LIST], rows, styles=[_STATUS_STYLE.get(run["status"], "") for run in runs])
    for run in damaged:
        console.notice(f"{run['run']}: {run['reason']}")
    if broken := [f"{run['run']} ({run['without'].replace('+', ', ')})" for run in runs if run not in damaged and run["without"]]:
        console.notice(f"† was trained without a part of the model and is never ranked: {'; '.join(broken)}")


def _is_tied(row: Row) -> bool:
    return row.tied_with_best and row.rank > 1


_LEADERBOARD: Fields[Row] = (
    (Column("#", right=True), lambda row: str(row.rank)),
    (Column("run", most=40), lambda row: row.run),
    (Column("nats/char", right=True), lambda row: format.loss(row.nats_per_char)),
    (Column("95 %", 1, right=True), lambda row: format.plus_minus(row.nats_per_char, row.ci95)),
    (Column(""), lambda row: "≈" if _is_tied(row) else ""),
    (Column("arch"), lambda row: row.arch),
    (Column("params", 2, right=True), lambda row: format.count(row.n_params)),
    (Column("active", 8, right=True), lambda row: format.count(row.n_active_params) if row.n_active_params != row.n_params else ""),
    (Column("best at", 5, right=True), lambda row: f"{row.best_step:,}"),
    (Column("steps", 6, right=True), lambda row: f"{row.stop_step:,}"),
    (Column("tokens", 4, right=True), lambda row: format.count(row.tokens_seen)),
    (Column("time", 3, right=True), lambda row: format.duration(row.elapsed_s)),
    (Column("tokenizer", 7, most=16), lambda row: row.tokenizer),
    (Column("nats/token", 9, right=True), lambda row: format.loss(row.val_loss)),
    (Column("status", 8), lambda row: row.status if row.status != "finished" else ""),
)
_ON_A_TERMINAL = ("", "active", "status")  # columns that a Markdown table leaves out

_FOLDED: Fields[Folded] = (
    (Column("#", right=True), lambda row: str(row.rank)),
    (Column("runs", most=44), lambda row: " ".join(row.runs)),
    (Column("n", right=True), lambda row: str(row.n)),
    (Column("nats/char", right=True), lambda row: format.loss(row.nats_per_char)),
    (Column("s.e.", right=True), lambda row: "" if row.standard_error is None else f"±{row.standard_error:.4f}"),
    (Column("arch", 1), lambda row: row.arch),
)


def print_leaderboard(groups: Sequence[tuple[str, Sequence[Row]]]) -> None:
    """Print one table for each text: its title, and its rows best first."""
    for number, (title, rows) in enumerate(groups):
        if number and not console.is_terminal(sys.stdout):
            console.write("")
        styles: list[Style] = ["best" if row.rank == 1 else "dim" if row.status in ("failed", "crashed") else "" for row in rows]
        print_table(*cells_of(_LEADERBOARD, rows), styles=styles, title=title)
    if any(_is_tied(row) for _, rows in groups for row in rows):
        console.notice("≈ is statistically tied with the first; minigpt compare tests a pair")


def leaderboard_table(rows: Sequence[Row]) -> tuple[list[Column], list[list[str]]]:
    """Columns and cells of a leaderboard for Markdown and pages."""
    columns, cells = cells_of([field for field in _LEADERBOARD if field[0].name not in _ON_A_TERMINAL], rows)
    score = next(i for i, column in enumerate(columns) if column.name == "nats/char")
    for row, line in zip(rows, cells, strict=True):
        line[score] += " ≈" if _is_tied(row) else ""
    return columns, cells


def folded_table(rows: Sequence[Folded]) -> tuple[list[Column], list[list[str]]]:
    """Columns and cells of one row for each recipe: mean and standard error over its seeds."""
    return cells_of(_FOLDED, rows)


def print_run(record: RunRecord, status: str, annotations: Annotations, settings: Sequence[tuple[str, str]], chart: str) -> None:
    """Print one run in full: its results, its model, and the settings that are not defaults."""
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
        score += f"; {best.nats_per_token:.4f} nats per token; step {best.step:,}"
        score += "" if best.whole_split else "; on samples of the split"
    active = "" if record.n_active_params == record.n_params else f", {record.n_active_params:,} active"
    commit = f"{record.git_commit[:12]}{' with changes' if record.git_dirty else ''}" if record.git_commit else ""
    text = f"{corpus.label} (sha256 {corpus.sha256[:12]})" if corpus else ""
    threads = f"{record.threads} thread{'s' * (record.threads > 1)}" if record.threads else ""
    splits = corpus.splits.items() if corpus else ()
    sizes = ", ".join(f"{name} {split.n_tokens:,} tokens / {split.n_chars:,} characters" for name, split in splits)
    taught = ", those of its teachers included" if record.teacher else ""
    return [
        ("run", record.name),
        ("status", status + (f": {REASONS[record.stop_reason]}" if record.stop_reason and record.stop_reason != status else "")),
        ("best", score),
        ("at the end", f"train {format.loss(record.final_train_loss)}, validation {format.loss(record.final_val_loss)} nats per token"),
        ("trained", f"{record.stop_step:,} steps, {record.tokens_seen:,} tokens, {format.duration(record.elapsed_s)}{taught}"),
        ("kept", _kept(record)),
        ("model", f"{record.arch}, {record.n_params:,} parameters{active}, vocabulary {record.vocab_size:,} ({record.tokenizer})"),
        ("text", text),
        ("", sizes),
        ("leak", corpus.leak.in_words if corpus and corpus.leak else ""),
        *(("fetched", line) for line in _fetched(corpus)),
        ("machine", ", ".join(filter(None, [record.device, record.device_name, threads]))),
        ("versions", ", ".join(f"{name} {number}" for name, number in record.versions.items())),
        ("commit", commit),
        ("command", shlex.join(record.argv)),
        ("preset", record.preset or ""),
        ("group", record.group or ""),
        ("started", format.moment(record.created_at)),
        ("resumed", ", ".join(f"at {each.step:,}{'' if each.exact else ' (not exactly)'}" for each in record.resume_exact_history)),
        ("from", f"{record.base.run} (sha256 {record.base.sha256[:12]})" if record.base else ""),
        ("tags", " ".join(annotations.tags)),
        ("note", annotations.note),
    ]


def _kept(record: RunRecord) -> str:
    """The checkpoints over time, and their size on the disk."""
    steps = [f"{step:,}" for step in kept_steps(record)]
    if len(steps) > _STEPS:
        steps = [*steps[: _STEPS - 1], "…", steps[-1]]
    return f"the weights of steps {', '.join(steps)}: {size(sum(file.bytes for file in record.kept.values()))}" if steps else ""


def _fetched(corpus: Corpus | None) -> list[str]:
    """What came from the network, the first few addresses."""
    found = corpus.fetched if corpus else []
    lines = []
    for one in found[:_ADDRESSES]:
        named = ", ".join(one.files[:_FILES]) + ", …" * (one.n_files > _FILES)
        files = f"commit {one.commit[:12]}, {one.n_files:,} file{'s' * (one.n_files != 1)}: {named}"
        lines.append(f"{one.address} ({f'sha256 {one.sha256[:12]}' if one.sha256 else files})")
    return lines + ([f"and {len(found) - _ADDRESSES} more"] if len(found) > _ADDRESSES else [])


def print_differences(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print what differs between runs: a row for each setting or result, a column for each run."""
    if not rows:
        console.write("no difference")
        return
    columns = [Column("", most=28), *(Column(one_line(name), most=44) for name in names)]
    print_table(columns, [[label, *values] for label, values in rows])
