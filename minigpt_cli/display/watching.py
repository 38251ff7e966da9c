"""The live view of runs that another process trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from minigpt_cli.display import console, format
from minigpt_cli.display.charts import curve_of, terminal_chart
from minigpt_cli.display.training_screen import TrainingScreen, TrainingState
from minigpt_cli.escaping import one_line
from minigpt_cli.events import Evaluated, Started, Stopped

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


class Observed(NamedTuple):
    """The state of a run according to its files."""

    started: Started
    evaluations: list[Evaluated]
    stopped: Stopped | None  # None while it trains
    time_limit_s: float
    status: str


def show_live(observations: Iterable[Sequence[Observed]], *, several: bool) -> None:
    """Redraw with each observation until every run has ended, or there are no more."""
    from rich.live import Live

    with Live(console=console.stdout(), refresh_per_second=4, vertical_overflow="crop", auto_refresh=False) as live:
        for observed in observations:
            live.update(Several(observed) if several else TrainingScreen(_state(observed[0])), refresh=True)
            if all(entry.stopped is not None for entry in observed):
                return


def _state(observed: Observed) -> TrainingState:
    notices = [] if observed.status in ("running", "finished") else [f"this run is {observed.status}"]
    return TrainingState(
        observed.started, observed.evaluations, stopped=observed.stopped, notices=notices, time_limit_s=observed.time_limit_s
    )


class Several:
    """Several runs: a row each, and their validation curves in one chart."""

    def __init__(self, observed: Sequence[Observed]) -> None:
        self.observed = observed

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        table.add_column("run", overflow="ellipsis", no_wrap=True)
        for name in ("step", "val", "best", "tokens/s", "time", "left", "state"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        curves = []
        for entry in self.observed:
            started, evaluations, stopped = entry.started, entry.evaluations, entry.stopped
            state = _state(entry)
            last, best = (evaluations[-1] if evaluations else None), state.best
            left = state.remaining_s if stopped is None else None
            table.add_row(
                one_line(started.run),
                f"{last.step if last else 0:,}/{started.max_steps:,}",
                format.loss(last.val_loss if last else None),
                format.loss(best.nats_per_char if best else None),
                format.count(last.tokens_per_s) if last else "",
                format.duration(last.elapsed_s) if last else "",
                "" if left is None else format.duration(left),
                stopped.stop_reason if stopped and entry.status == "finished" else entry.status,
            )
            curves.append(curve_of(one_line(started.run)[:20], evaluations, "nats_per_char"))
        yield table
        height = min(14, screen.size.height - len(self.observed) - 10)
        if height >= 5 and (chart := terminal_chart(curves, width=min(options.max_width, 110), height=height, colour=not screen.no_color)):
            yield Text("validation, nats per character against steps", style="dim")
            yield Text.from_ansi(chart)
