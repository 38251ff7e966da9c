"""What a person sees while a model trains: a live table on a terminal, a line per evaluation elsewhere, JSON lines for scripts."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self

from minigpt_cli.display import console
from minigpt_cli.display.training_screen import (
    Standings,
    TrainingScreen,
    TrainingState,
    describe_resume,
    describe_start,
    evaluation_line,
)
from minigpt_cli.events import Evaluated, Event, Progress, Resumed, Skipped, Started

if TYPE_CHECKING:
    from rich.console import Console


class TrainingView(AbstractContextManager["TrainingView"], Protocol):
    """Something that shows events."""

    def show(self, event: Event) -> None: ...

    def announce(self, message: str) -> None:
        """Show a line; safe in the middle of anything, as a signal handler needs it."""


def training_view(
    *, json: bool = False, quiet: bool = False, time_limit_s: float = 0.0, standings: Standings | None = None
) -> TrainingView:
    """The view that fits where stdout and stderr go."""
    if quiet:
        return Silent()
    if json:
        return JsonLines()
    return LiveTable(console.stderr(), time_limit_s, standings) if console.is_terminal(sys.stderr) else PlainLines()


class Silent:
    """Shows nothing: the processes beside the one that writes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def show(self, event: Event) -> None:
        """Nothing."""

    def announce(self, message: str) -> None:
        """Nothing."""


class JsonLines(Silent):
    """One JSON object a line on stdout; heartbeats are left out."""

    def show(self, event: Event) -> None:
        """Print `event` unless it is a heartbeat."""
        if not isinstance(event, Progress):
            console.write_event(event)

    def announce(self, message: str) -> None:
        """Print it on stderr."""
        console.write_now(message)


class PlainLines(Silent):
    """A line per evaluation on stderr, for logs and pipes."""

    def __init__(self) -> None:
        self.max_steps = 0

    def show(self, event: Event) -> None:
        """Print a line, if `event` is worth one."""
        if isinstance(event, Started):
            self.max_steps = event.max_steps
            console.notice(describe_start(event))
        if isinstance(event, Started | Resumed):
            for notice in event.notices:
                console.notice(notice)
        if isinstance(event, Resumed):
            console.notice(describe_resume(event))
        elif isinstance(event, Skipped):
            console.warn(f"step {event.step} was not applied: {event.reason}")
        elif isinstance(event, Evaluated):
            console.notice(evaluation_line(event, self.max_steps))

    def announce(self, message: str) -> None:
        """Print it on stderr."""
        console.write_now(message)


class LiveTable(Silent):
    """The live table: evaluations, a small curve, and where the run is."""

    def __init__(self, screen: Console, time_limit_s: float = 0.0, standings: Standings | None = None) -> None:
        from rich.live import Live

        self.state = TrainingState(time_limit_s=time_limit_s, standings=standings)
        self.live = Live(TrainingScreen(self.state), console=screen, refresh_per_second=4, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def show(self, event: Event) -> None:
        """Redraw with `event`."""
        self.state.add(event)
        if not isinstance(event, Progress):
            self.live.refresh()

    def announce(self, message: str) -> None:
        """Put it among the notices; the next redrawing, a moment later, shows it."""
        self.state.notices.append(message)
