"""The leaderboard on screen: all runs, or at an equal budget, or with the seeds of one recipe folded into a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from minigpt_cli.display import console
from minigpt_cli.evaluation import leaderboard
from minigpt_cli.evaluation.leaderboard import Folded, Row
from minigpt_cli.evaluation.recipes import repeat_notice
from minigpt_cli.runstore.store import Run


def ranked(runs: Sequence[Run], budget: str | None = None) -> list[Row]:
    """Rows best first, each text apart; within `budget` if there is one. Raises UsageError for any other budget than these."""
    chosen = within(runs, budget)
    by_measure = budget is not None and not budget.startswith("params")  # scores during training were not kept: nothing to pair
    return leaderboard.rank(chosen, (lambda first, other: False) if by_measure else None)


def within(runs: Sequence[Run], budget: str | None) -> list[Run]:
    """The runs as they stood within `budget`; says what that means."""
    if budget is None:
        return list(runs)
    found = leaderboard.within(runs, budget)
    if found.limit is not None:
        console.notice(
            f"at {found.limit:,.0f} {found.unit}, from evaluations during training: sampled where those were, and without intervals"
        )
    for line in found.left_out:
        console.warn(line)
    return found.runs


def folded(runs: Sequence[Run]) -> list[Folded]:
    """Recipes best first, texts apart; says which runs repeat another and are not counted."""
    rows, repeats = leaderboard.fold(runs)
    for pair in repeats:
        console.warn(repeat_notice(*pair))
    return rows


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
    labels = {run.record.text_sha256: run.record.corpus.label for run in runs if run.record.corpus}
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
