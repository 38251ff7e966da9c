"""A progress bar on a terminal, nothing but a first line off it: for reading, tokenizing, downloading and scoring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minigpt_cli.display import console
from minigpt_cli.escaping import one_line

Advance = Callable[[str, float, float | None], None]
"""Called with what is being done, how much is done, and how much there is in all (None: not known)."""


@contextmanager
def progress(*, in_bytes: bool = False, quiet: bool = False) -> Iterator[Advance]:
    """Show a bar on stderr for the length of a `with`; it is gone afterwards. `quiet` shows nothing."""
    if quiet or not console.is_terminal(sys.stderr):
        yield _announced_once(quiet)
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=console.stderr(), transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def advance(what: str, done: float, total: float | None) -> None:
            bar.update(task, description=one_line(what), completed=done, total=total, visible=True)

        yield advance


def _announced_once(quiet: bool) -> Advance:
    said: set[str] = set()

    def advance(what: str, done: float, total: float | None) -> None:
        if not quiet and what not in said:
            said.add(what)
            console.notice(what)

    return advance
