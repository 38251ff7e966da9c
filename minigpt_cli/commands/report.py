"""Gathers what the HTML report of `runs plot --html` shows. Samples are decoded without torch where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minigpt_cli.commands.config_fields import settings, show_value
from minigpt_cli.commands.config_sources import differing_from_defaults
from minigpt_cli.commands.leaderboard import ranked
from minigpt_cli.commands.run_fields import RunFields
from minigpt_cli.commands.samples import sample_of
from minigpt_cli.display import console
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.store import Run, RunStore
from minigpt_cli.storage.atomic_io import write_atomic

_ROWS = 20  # of the leaderboard


def write_report(path: Path, runs: Sequence[Run], store: RunStore) -> None:
    """Write the report of `runs` to `path`. Raises UsageError if they have no evaluations or the folder is not there."""
    from minigpt_cli.display.pages.report import Report, Reported, report_page

    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}: make it first")
    reported = [Reported(run.record, list(run.metrics()), differing_from_defaults(run.config), run.status, sample_of(run)) for run in runs]
    if not any(run.evaluations for run in reported):
        raise UsageError(
            f"nothing to report: {', '.join(run.name for run in runs)} {'have' if len(runs) > 1 else 'has'} no evaluations yet"
        )
    write_atomic(path, report_page(Report(reported, ranked(store.runs())[:_ROWS], differences(runs))))
    console.notice(f"wrote {path}")


def differences(runs: Sequence[Run], more: Sequence[str] = ()) -> list[tuple[str, list[str]]]:
    """Settings, and other fields named in `more`, that differ between runs: a name and a value for each run."""
    fields = [RunFields(run) for run in runs]
    values = {name: [f.get(name) for f in fields] for name in dict.fromkeys([*settings(), *more])}
    return [
        (name, ["-" if value is None else show_value(value) for value in row])
        for name, row in values.items()
        if any(value != row[0] for value in row)
    ]
