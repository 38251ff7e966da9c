"""The report page of runs: for runs plot --html, and for runs watch --html while they train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_cli.commands.run_fields import differences, shown_differences
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.display.pages.report import Reported
    from minigpt_cli.evaluation.leaderboard import Row

_ROWS = 20  # of the leaderboard


def write_report(path: Path, runs: Sequence[Run], store: RunStore, *, reload_s: float | None = None) -> None:
    """Write the report of `runs` to `path`. With `reload_s` it is one of runs that train: the page loads itself again after so many
    seconds (0: never), and has neither a new sample nor a leaderboard. Raises UsageError
    if they have no evaluations or the folder does not exist.
    """
    from minigpt_cli.display.pages.report import report_page
    from minigpt_cli.storage.atomic_io import check_parent, write_atomic

    check_parent(path)
    live = reload_s is not None
    reported = [_reported(run, live=live) for run in runs]
    if not live and not any(run.evaluations for run in reported):
        raise UsageError(f"nothing to report: {no_evaluations(runs)}")
    differing = shown_differences(differences([[run] for run in runs]))
    write_atomic(path, report_page(reported, [] if live else _boards(runs, store), differing, reload_s=reload_s or 0.0))


def no_evaluations(runs: Sequence[Run]) -> str:
    """That these runs have nothing to show yet."""
    return f"{', '.join(run.name for run in runs)} {'have' if len(runs) > 1 else 'has'} no evaluations yet"


def _reported(run: Run, *, live: bool) -> Reported:
    from minigpt_cli.commands.config_sources import differing_from_defaults
    from minigpt_cli.commands.samples import sample_of
    from minigpt_cli.display.pages.report import Reported

    sample = "" if live else sample_of(run)
    return Reported(run.record, list(run.metrics()), differing_from_defaults(run.config), run.status, sample, list(run.samples()))


def _boards(runs: Sequence[Run], store: RunStore) -> list[tuple[str, list[Row]]]:
    """The leaderboards with these runs: the best rows, and theirs."""
    from minigpt_cli.commands.leaderboard import grouped, ranked

    everyone, names = store.runs(), {run.name for run in runs}
    boards = [(title, rows) for title, rows in grouped(everyone, ranked(everyone)) if any(row.run in names for row in rows)]
    return [(title, [row for row in rows if row.rank <= _ROWS or row.run in names]) for title, rows in boards]
