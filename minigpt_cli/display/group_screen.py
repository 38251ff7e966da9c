"""The screen of a sweep or a search while one of its runs trains, and the result of the group at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_cli.display import console, format
from minigpt_cli.display.tables import Column, print_table
from minigpt_cli.display.training_screen import TrainingState, progress_bar
from minigpt_cli.escaping import one_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


@dataclass(frozen=True)
class Standings:
    """The progress of a group of runs while one of them trains."""

    group: str
    total: int
    swept: tuple[str, ...]  # the settings in which the runs differ
    finished: tuple[tuple[tuple[str, ...], float], ...]  # values of `swept` and nats per character, best first
    failed: int
    running: tuple[str, ...]  # values of `swept`
    run_s: float | None  # mean seconds of a run so far; None during the first one


class GroupScreen:
    """The finished runs of a group best first, and the running one with its bar."""

    def __init__(self, state: TrainingState, standings: Standings) -> None:
        self.state, self.standings = state, standings

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        standings = self.standings
        yield Text(self._summary(), overflow="ellipsis", no_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for name in (*standings.swept, "nats/char"):
            table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if name == "nats/char" else "left")
        room = max(1, screen.size.height - 8)
        for position, (values, score) in enumerate(standings.finished[:room]):
            table.add_row(*map(one_line, values), format.loss(score), style="bold green" if position == 0 else None)
        best = self.state.best
        table.add_row(*map(one_line, standings.running), format.loss(best.nats_per_char) if best else "…", style="bold cyan")
        yield table
        if hidden := len(standings.finished) - room:
            yield Text(f"and {hidden} more below the best {room}" if hidden > 0 else "", style="dim")
        yield self._bar(options.max_width)

    def _summary(self) -> str:
        standings, left = self.standings, self._left_s()
        parts = [f"{len(standings.finished)} of {standings.total} runs done"]
        parts += [f"{standings.failed} failed"] if standings.failed else []
        parts += [f"about {format.duration(left)} left in all"] if left is not None else []
        return " · ".join([*parts, one_line(standings.group)])

    def _left_s(self) -> float | None:
        """Seconds until the whole group is done; None if not even one run's time is known."""
        state, standings = self.state, self.standings
        to_come = max(0, standings.total - len(standings.finished) - standings.failed - 1)
        now, left = state.latest, state.remaining_s
        if now is None or left is None:
            return None if standings.run_s is None else standings.run_s * (to_come + 1)
        return left + to_come * (standings.run_s or now.elapsed_s + left)

    def _bar(self, width: int) -> RenderableType:
        state = self.state
        now, total = state.latest, state.started.max_steps if state.started else 0
        if state.scoring is not None:
            return progress_bar(state.scoring.done, state.scoring.total, [f"this run: {state.scoring_words()}"], width)
        if now is None or not total:
            return progress_bar(0, 1, ["this run: the first steps"], width)
        left = state.remaining_s
        parts = [f"this run: step {now.step:,}/{total:,}", *([f"{format.duration(left)} left"] if left is not None else [])]
        return progress_bar(now.step, total, parts, width)


@dataclass(frozen=True)
class GroupRow:
    """The seeds of one combination of values."""

    values: Sequence[str]
    nats_per_char: float
    spread: str  # of the text for one seed, of the seeds for several
    seeds: int
    elapsed_s: float
    note: str = ""


def print_group(swept: Sequence[str], rows: Sequence[GroupRow], lines: Sequence[tuple[str, str]], command: str) -> None:
    """Print a row for each combination, best first, then labelled lines and the next command, to stdout."""
    columns = [Column(name, most=24) for name in swept]
    columns += [
        Column("nats/char", right=True),
        Column("95 %", 2, right=True),
        Column("seeds", 1, right=True),
        Column("time", 3, right=True),
    ]
    seeds = any(row.seeds > 1 for row in rows)
    cells = [
        [*row.values, format.loss(row.nats_per_char), row.spread, str(row.seeds) if seeds else "", format.duration(row.elapsed_s), row.note]
        for row in rows
    ]
    print_table([*columns, Column("", 1)], cells, styles=["best"])
    if lines:
        console.write("")
    for label, line in lines:
        console.write_labelled(label, line)
    console.write(f"next    {one_line(command)}")
