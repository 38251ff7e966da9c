"""minigpt runs prune: thin the checkpoints that runs keep over time."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from minigpt_cli.commands.options import RunsDir, YesFlag, option, switch
from minigpt_cli.display import console, waiting
from minigpt_cli.errors import RunNotFound, UsageError
from minigpt_cli.escaping import one_line
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.runstore.weights import kept_name, kept_steps, prune_kept, thinned, unnamed
from minigpt_cli.storage.atomic_io import size

_SHOWN = 8  # steps in one line


def prune(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs, in full, or patterns with *.", autocompletion=None)],
    keep: Annotated[int | None, option("N", "So many stay, evenly spread, the last among them; 0: none.", min=0)] = None,
    every: Annotated[int | None, option("N", "The steps that are a multiple of N stay.", min=1)] = None,
    dry_run: Annotated[bool, switch("--dry-run", "Only say what would be removed.")] = False,
    yes: YesFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs prune modern-1 --keep 5             five of them stay
      minigpt runs prune modern-1 --every 1000 --yes   every 1,000th step stays
      minigpt runs prune 'sweep-*' --keep 0 --dry-run  what would be removed

    Removes checkpoints that train --keep-every kept. The best and the last weights always stay, and the run can still be resumed.
    A run that is being trained is refused.
    """
    if (keep is None) == (every is None):
        raise UsageError("say which checkpoints stay: --keep N for so many, or --every N for every N-th step")
    chosen = [one for one in _named(RunStore(runs_dir), run) if _announce(one, keep, every, dry_run=dry_run)]
    if dry_run or not chosen:
        return
    if not yes:
        if not (console.is_terminal(sys.stdin) and console.is_terminal(sys.stderr)):
            raise UsageError("removing checkpoints asks for confirmation, which needs a terminal: add --yes")
        waiting.remove()
        typer.confirm("Remove them? This cannot be undone.", abort=True, err=True)
    for one in chosen:
        with RunStore(one.dir.parent).lock(one):
            prune_kept(one, keep, every)


def _named(store: RunStore, names: list[str]) -> list[Run]:
    """The runs of these names, patterns and paths; a name's beginning is not enough where something is removed."""
    for name in names:
        found = store.find_all([name])
        if found[0].checkpoint is not None:
            raise UsageError(f"{name} is one checkpoint: name run {found[0].name}, and say with --keep or --every what stays")
        if "*" not in name and found[0].name != name and found[0].name.startswith(name):
            raise RunNotFound(f"there is no run {name!r}: {found[0].name} begins with it, and checkpoints are removed by the full name")
    return [*store.find_all(names)]


def _announce(run: Run, keep: int | None, every: int | None, *, dry_run: bool) -> bool:
    """Say what is removed from a run and what stays; whether anything is removed."""
    record = run.read()
    steps = kept_steps(record)
    stay = thinned(steps, keep, every)
    go = [step for step in steps if step not in stay]
    strays = unnamed(run, record)
    if not go and not strays:
        console.notice(f"{one_line(run.name)}: nothing to remove ({len(steps)} checkpoints over time)")
        return False
    n_bytes = sum(record.kept[kept_name(step)].bytes for step in go) + sum(path.lstat().st_size for path in strays)
    named = [f"{step:,}" for step in go[:_SHOWN]] + ([f"{len(go) - _SHOWN:,} more"] if len(go) > _SHOWN else [])
    what = [f"steps {', '.join(named)}"] if go else []
    what += [f"{len(strays)} that the record does not name"] if strays else []
    verb = "would remove" if dry_run else "removes"
    console.notice(f"{one_line(run.name)}: {verb} {' and '.join(what)} ({size(n_bytes)}); {len(stay)} of {len(steps)} stay")
    return True
