"""What is shown while a model trains: a live table on a terminal, a line per evaluation elsewhere, JSON lines for scripts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from minigpt_cli.display import console
from minigpt_cli.display.training_screen import (
    Standings,
    TrainingScreen,
    TrainingState,
    describe_resume,
    describe_skip,
    describe_start,
    evaluation_line,
)
from minigpt_cli.events import Evaluated, Event, Progress, Resumed, Skipped, Started

if TYPE_CHECKING:
    from rich.console import Console


def training_view(
    *, json: bool = False, quiet: bool = False, time_limit_s: float = 0.0, standings: Standings | None = None
) -> TrainingView:
    """The view for this terminal, pipe or script."""
    if quiet:
        return TrainingView()
    if json:
        return JsonLines()
    return LiveTable(console.stderr(), time_limit_s, standings) if console.is_terminal(sys.stderr) else PlainLines()


class TrainingView:
    """Shows training events. This one shows nothing: nobody reads its output any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def show(self, event: Event) -> None:
        """Show `event`."""

    def announce(self, message: str) -> None:
        """Show a line. Safe at any moment: signal handlers call it."""


class _Lines(TrainingView):
    def announce(self, message: str) -> None:
        console.write_now(message)


class JsonLines(_Lines):
    """One JSON object a line on stdout, without Progress events."""

    def show(self, event: Event) -> None:
        if not isinstance(event, Progress):
            console.write_event(event)


class PlainLines(_Lines):
    """A line per evaluation on stderr, for logs and pipes."""

    def __init__(self) -> None:
        self.max_steps = 0

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            self.max_steps = event.max_steps
            console.notice(describe_start(event))
        if isinstance(event, Started | Resumed):
            for notice in event.notices:
                console.notice(notice)
        if isinstance(event, Resumed):
            console.notice(describe_resume(event))
        elif isinstance(event, Skipped):
            console.warn(describe_skip(event))
        elif isinstance(event, Evaluated):
            console.notice(evaluation_line(event, self.max_steps))


class LiveTable(TrainingView):
    """The live table: evaluations, a small curve, and the current step."""

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
        self.state.add(event)
        if not isinstance(event, Progress):
            self.live.refresh()

    def announce(self, message: str) -> None:
        self.state.notices.append(message)  # the next redraw, a moment later, shows it
