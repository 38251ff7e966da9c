"""The leaderboard's rows: all runs, or at an equal budget, or with the seeds of one recipe folded into a row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from minigpt_cli.display import console
from minigpt_cli.errors import MiniGPTError, UsageError, unknown_name
from minigpt_cli.evaluation.ranking import Folded, fold, ties
from minigpt_cli.evaluation.recipes import repeat_notice
from minigpt_cli.leaderboard import Row, rank, text_sha256
from minigpt_cli.records import Best
from minigpt_cli.runstore import Run

_AMOUNTS = {"tokens": "tokens_seen", "seconds": "elapsed_s"}
_Row = TypeVar("_Row", Row, Folded)


def ranked(runs: Sequence[Run], budget: str | None = None) -> list[Row]:
    """Rows best first, each text apart; within `budget` if there is one. Raises UsageError for a budget that is none."""
    chosen = within(runs, budget)
    return rank(chosen, ties(chosen) if budget is None or budget.startswith("params") else lambda first, other: False)


def within(runs: Sequence[Run], budget: str | None) -> list[Run]:
    """The runs as they stood within `budget`, those left out that had no score by then. Raises UsageError for a budget that is none."""
    if budget is None:
        return list(runs)
    kind, _, amount = budget.partition("=")
    try:
        limit = float(amount) if amount else None
    except ValueError:
        limit = math.nan
    if kind not in (*_AMOUNTS, "params") or (limit is not None and not limit > 0):
        raise UsageError(f"--budget {budget}: write tokens, seconds or params, and a number if it is not to be found, as in seconds=60")
    if kind == "params":
        return _best_of_size(runs) if limit is None else [run for run in runs if run.record.n_params <= limit]
    scored = [run for run in runs if run.record.best is not None]
    if limit is None:
        limit = min((getattr(run.record, _AMOUNTS[kind]) for run in scored), default=0)
    console.notice(f"at {limit:,.0f} {kind}, from evaluations during training: sampled where those were, and without intervals")
    return [cut for run in scored if (cut := _within(run, _AMOUNTS[kind], limit)) is not None]


def by_field(rows: Sequence[_Row], sort: str | None, names: Collection[str]) -> list[_Row]:
    """Rows by one of their own fields, `-field` for the largest first; those without it last. Raises UsageError for an unknown field."""
    if sort is None:
        return list(rows)
    name = sort.removeprefix("-")
    if name not in names:
        raise unknown_name("field", name, names)
    have = sorted((row for row in rows if getattr(row, name) is not None), key=lambda row: getattr(row, name), reverse=sort.startswith("-"))
    return have + [row for row in rows if getattr(row, name) is None]


def _best_of_size(runs: Sequence[Run]) -> list[Run]:
    """Runs that no model of the same size or smaller beats on the same text."""
    kept: list[Run] = []
    lowest: dict[str, float] = {}
    for run in sorted((r for r in runs if r.record.best), key=lambda r: (r.record.n_params, r.record.best.nats_per_char)):  # type: ignore[union-attr]
        score = run.record.best.nats_per_char  # type: ignore[union-attr]
        if score < lowest.get(text_sha256(run), math.inf):
            lowest[text_sha256(run)] = score
            kept.append(run)
    return kept


def _within(run: Run, amount: str, limit: float) -> Run | None:
    """The run as it stood when it had used up `limit`; None if it had not been evaluated by then."""
    try:
        events = [
            event
            for event in run.metrics()
            if getattr(event, amount) <= limit and event.nats_per_char is not None and event.val_loss is not None
        ]
    except MiniGPTError as error:
        console.warn(f"{run.name} is left out: {error}")
        return None
    if not events:
        return None
    best = min(events, key=lambda event: event.nats_per_char or math.inf)
    cut = Run(run.dir)
    changes = {
        "best": Best(step=best.step, nats_per_token=best.val_loss or 0.0, nats_per_char=best.nats_per_char or 0.0),
        "stop_step": events[-1].step,
        "tokens_seen": events[-1].tokens_seen,
        "elapsed_s": events[-1].elapsed_s,
    }
    cut.__dict__["record"] = run.record.model_copy(update=changes)
    return cut


def show(runs: Sequence[Run], rows: Sequence[Row], *, json: bool, csv: bool, md: bool) -> None:
    """Print rows in the form asked for."""
    from minigpt_cli.display.run_tables import leaderboard_markdown, print_leaderboard
    from minigpt_cli.display.tables import as_csv, as_markdown

    names = list(Row.model_fields)
    if json:
        console.write_json([row.model_dump(mode="json") for row in rows])
    elif csv:
        cells = [[_flat(getattr(row, name)) for name in names] for row in rows]
        console.write_rows(as_csv(names, cells))
    elif md:
        console.write("\n\n".join(as_markdown(*leaderboard_markdown(group)) for _, group in _by_text(runs, rows)))
    elif not rows:
        console.notice("no scored runs" + (" that meet this" if runs else " yet: start with minigpt train"))
    else:
        print_leaderboard(_by_text(runs, rows))


def _flat(value: Any) -> Any:
    return " ".join(str(item) for item in value) if isinstance(value, list | tuple) else value


def _by_text(runs: Sequence[Run], rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows grouped by validation text, each group with a title if there is more than one."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.text_sha256].append(row)
    labels = {text_sha256(run): run.record.corpus.label for run in runs if run.record.corpus}
    if len(groups) == 1:
        return [("", group) for group in groups.values()]
    return [(f"{labels.get(sha, 'unknown text')} (validation text {sha[:8] or 'unknown'})", group) for sha, group in groups.items()]


def show_folded(rows: Sequence[Folded], *, json: bool, csv: bool, md: bool) -> None:
    """Print one row for each recipe: mean and standard error over its seeds."""
    from minigpt_cli.display.tables import Column, as_csv, as_markdown, print_table

    if json:
        console.write_json([asdict(row) for row in rows])
        return
    names = list(Folded.__dataclass_fields__)
    if csv:
        console.write_rows(as_csv(names, [[_flat(getattr(row, name)) for name in names] for row in rows]))
        return
    shown = [
        [
            str(row.rank),
            _flat(row.runs),
            str(row.n),
            f"{row.nats_per_char:.4f}",
            "" if row.standard_error is None else f"±{row.standard_error:.4f}",
            row.arch,
        ]
        for row in rows
    ]
    columns = [
        Column("#", right=True),
        Column("runs", most=44),
        Column("n", right=True),
        Column("nats/char", right=True),
        Column("s.e.", right=True),
        Column("arch", 1),
    ]
    if md:
        console.write(as_markdown([c.name for c in columns], shown, [c.right for c in columns]))
    else:
        print_table(columns, shown)


def folded(runs: Sequence[Run]) -> list[Folded]:
    """Recipes best first, texts apart; says which runs repeat another and are not counted."""
    rows, repeats = fold(runs)
    for pair in repeats:
        console.warn(repeat_notice(*pair))
    return rows
