"""What is shown while a model trains, here or in another process, and at the end: a live table on a terminal, a line per evaluation in
a pipe, JSON lines for scripts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from minigpt_cli.display import console, format
from minigpt_cli.display.charts import curve_of
from minigpt_cli.display.group_screen import GroupScreen, Standings
from minigpt_cli.display.terminal_chart import terminal_chart
from minigpt_cli.display.training_screen import (
    LINE_BREAK,
    REASONS,
    TrainingScreen,
    TrainingState,
    describe_resume,
    describe_skip,
    describe_start,
    evaluation_line,
)
from minigpt_cli.escaping import one_line, printable, unix_lines
from minigpt_cli.events import Evaluated, Event, Planned, Progress, Resumed, Sampled, Sampling, Scoring, Skipped, Started, Stopped

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live

    from minigpt_cli.runstore.directory import Run

_SAMPLE_LINES = 12


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

    shows_samples = False  # also those that nobody asked for

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
    """One JSON object a line on stdout, without the events that are only for the screen."""

    def show(self, event: Event) -> None:
        if not isinstance(event, Progress | Scoring | Sampling):
            console.write_event(event)


class PlainLines(_Lines):
    """A line per evaluation on stderr, for logs and pipes."""

    def __init__(self) -> None:
        self.max_steps = 0

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            self.max_steps = event.max_steps
            console.notice(describe_start(event))
        elif isinstance(event, Planned):
            self.max_steps = event.max_steps
        if isinstance(event, Started | Resumed):
            for notice in event.notices:
                console.notice(notice)
        if isinstance(event, Resumed):
            console.notice(describe_resume(event))
        elif isinstance(event, Skipped):
            console.warn(describe_skip(event))
        elif isinstance(event, Evaluated):
            console.notice(evaluation_line(event, self.max_steps))
        elif isinstance(event, Sampled):
            console.notice(f"step {event.step:,} writes: {unix_lines(event.prompt + event.text)}".replace("\n", LINE_BREAK))
        elif isinstance(event, Scoring) and event.final and event.done == 0:
            console.notice(f"scoring the best checkpoint on the whole validation text, {event.total:,} tokens")


def resizable_live(view: RenderableType, screen: Console, **options: Any) -> Live:
    """rich's live display, which clears the screen when its size changes: the terminal has then wrapped the old lines in another
    way, and rich would erase the wrong ones."""
    from rich.control import Control
    from rich.live import Live
    from rich.live_render import LiveRender

    class Resizable(Live):
        drawn_size = screen.size

        def refresh(self) -> None:
            if screen.size != self.drawn_size:
                self.drawn_size = screen.size
                screen.control(Control.clear(), Control.home())
                self._live_render = LiveRender(self.get_renderable(), vertical_overflow=self.vertical_overflow)
            super().refresh()

    return Resizable(view, console=screen, refresh_per_second=4, vertical_overflow="crop", **options)


class LiveTable(TrainingView):
    """The live table: evaluations, a small curve, and the current step."""

    def __init__(self, screen: Console, time_limit_s: float = 0.0, standings: Standings | None = None) -> None:
        self.state = TrainingState(time_limit_s=time_limit_s)
        view = GroupScreen(self.state, standings) if standings else TrainingScreen(self.state)  # of a group only its last table stays
        self.shows_samples = standings is None
        self.live = resizable_live(view, screen, transient=standings is not None)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def show(self, event: Event) -> None:
        from rich.text import Text

        if isinstance(event, Started | Resumed) and not self.live.transient:  # whole, above the table, where they stay
            for notice in event.notices:
                self.live.console.print(Text(one_line(notice), "dim"))
        self.state.add(event)
        if not isinstance(event, Progress | Scoring | Sampling):
            self.live.refresh()

    def announce(self, message: str) -> None:
        self.state.notices.append(message)  # the next redraw, a moment later, shows it


class Observed(NamedTuple):
    """The state of a run of another process, read from its files."""

    started: Started
    evaluations: list[Evaluated]
    sample: Sampled | None  # the latest
    stopped: Stopped | None  # None while the run trains
    time_limit_s: float
    status: str


def show_live(observations: Iterable[Sequence[Observed]], *, several: bool) -> None:
    """Redraw with each observation until every run has ended or the observations end."""
    with resizable_live("", console.stdout(), auto_refresh=False) as live:
        for observed in observations:
            live.update(RunsScreen(observed) if several else TrainingScreen(_state(observed[0])), refresh=True)
            if all(entry.stopped is not None for entry in observed):
                return


def _state(observed: Observed) -> TrainingState:
    notices = [] if observed.status in ("running", "finished") else [f"this run is {observed.status}"]
    return TrainingState(
        started=observed.started,
        evaluations=observed.evaluations,
        sample=observed.sample,
        stopped=observed.stopped,
        notices=notices,
        time_limit_s=observed.time_limit_s,
    )


class RunsScreen:
    """Several runs: one row for each, and their validation curves in one chart."""

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
                REASONS[stopped.stop_reason] if stopped and entry.status == "finished" else entry.status,
            )
            curves.append(curve_of(one_line(started.run)[:20], evaluations, "nats_per_char"))
        yield table
        height = min(14, screen.size.height - len(self.observed) - 10)
        if height >= 5 and (chart := terminal_chart(curves, width=min(options.max_width, 110), height=height, colour=not screen.no_color)):
            yield Text("validation, nats per character against steps", style="dim")
            yield Text.from_ansi(chart)


def print_plan(facts: Mapping[str, Any]) -> None:
    """Print a plan in lines of name and value."""
    active = "" if facts["n_active_params"] == facts["n_params"] else f", {facts['n_active_params']:,} active"
    largest, peak = facts["largest_batch"], facts["peak_bytes"]
    lines = {
        "parameters": f"{facts['n_params']:,}{active}",
        "speed": f"{facts['step_ms']:.1f} ms a step, {format.count(facts['tokens_per_s'])} tokens/s on {facts['device']}",
        "memory": "not known here" if peak is None else f"{format.size(peak)} at the peak",
        "largest batch": "not known here" if largest is None else f"about {largest:,} (chosen: {facts['batch_size']:,})",
        "steps": f"{facts['max_steps']:,}, {facts['epochs']:.2f} times over the training text",
        "time": f"about {format.duration(facts['estimated_s'])}, {'teachers and ' if facts['teachers'] else ''}evaluations included",
    }
    width = max(map(len, lines))
    console.write("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))


def print_ending(run: Run, stopped: Stopped, commands: Sequence[str], sample: str = "", found: str = "") -> None:
    """Print the score with its interval, a sample, what was found wrong, and the commands that come next, to stdout."""
    name = one_line(run.name)
    reason = REASONS[stopped.stop_reason] + (", saved" if stopped.stop_reason.status == "interrupted" else "")
    where = "while its teacher was trained" if run.waits else f"at step {stopped.step:,}, {format.duration(stopped.elapsed_s)}"
    console.write_labelled("run", f"{name}: {reason} {where}")
    best = run.record.best
    if best is not None:
        score = f"{best.nats_per_char:.4f} nats per character"
        if best.ci95:
            score += f" (95 %: {format.interval(best.ci95)})"
        console.write_labelled("best", score)
        per_token = "" if best.nats_per_token == best.nats_per_char else f"{best.nats_per_token:.4f} nats per token, "
        where = "the whole validation text" if best.whole_split else "samples of the validation text"
        console.write_labelled("", f"{per_token}on {where}, at step {best.step:,}")
    if sample:
        console.write("sample")
        for line in printable(sample).splitlines()[:_SAMPLE_LINES]:
            console.write_wrapped(f"  {line}".rstrip(), "  ")
    if found:
        console.write_labelled("found", found)
    console.write("next    " + "\n        ".join(map(one_line, commands)))
