"""The live screen of a training, and the state that it draws; `runs watch` shows the same screen for a run of another process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import format
from minigpt_cli.display.charts import curve_of
from minigpt_cli.display.terminal_chart import Curve, terminal_chart
from minigpt_cli.escaping import one_line, printable, unix_lines
from minigpt_cli.events import Evaluated, Event, Planned, Progress, Resumed, Sampled, Sampling, Scoring, Skipped, Started, Stopped

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

_TABLE_FRAME = 4  # lines around the rows: one before and after, the names of the columns and the line under them
_WIDE, _TABLE_WIDTH = 120, 76  # columns of a screen with the curves beside the table, and of the table there
_CHART_FRAME = 3  # lines around the curves: their unit and the horizontal axis
REASONS = {
    "max_steps": "all steps done",
    "early_stopping": "stopped early: the validation loss no longer improves",
    "interrupted_keyboard": "stopped by Ctrl-C",
    "terminated": "stopped by a signal",
    "time_limit": "time limit reached",
    "target_loss": "target loss reached",
    "diverged": "diverged",
    "pruned": "given up by the search",
    "plateau": "stopped: the validation loss no longer improves",
    "failed": "failed",
    "imported": "imported",
}  # why a run ended, as people say it
_DEVICES = {"cpu": "on the CPU", "cuda": "on the GPU", "mps": "on Apple's GPU"}
_PRECISIONS = {"fp32": " in 32 bits", "bf16": " in 16 bits", "fp16": " in 16 bits"}
LINE_BREAK = " ⏎ "  # in a text that is shown in one line
_FEW_ROWS, _MOST_CURVE, _MOST_SAMPLE = 5, 8, 9  # lines of the table, the curves and the sample where all are shown
_LEAST_SAMPLE = 3
_LEVELS = " ▁▂▃▄▅▆▇█"


def describe_start(event: Started) -> str:
    """The run in one line: its model, text and device."""
    active = "" if event.n_active_params == event.n_params else f" ({format.count(event.n_active_params)} active)"
    where = _DEVICES.get(event.device, event.device) + _PRECISIONS.get(event.precision, "") + (", compiled" if event.compiled else "")
    return (
        f"{event.run}: {event.arch}, {format.count(event.n_params)} parameters{active}, a vocabulary of {event.vocab_size:,}; "
        f"{event.max_steps:,} steps over {event.train_tokens:,} training tokens, {where}"
    )


def describe_resume(event: Resumed) -> str:
    """The step at which training continues."""
    return f"{event.run}: going on from step {event.step:,}"


def describe_skip(event: Skipped) -> str:
    """Which step left the weights unchanged, and why."""
    return f"step {event.step} was not applied: {event.reason}"


def evaluation_line(event: Evaluated, max_steps: int) -> str:
    """One evaluation as a line with fixed columns."""
    step = f"{event.step}/{max_steps}" if max_steps else str(event.step)
    patience = "" if event.patience_left is None else f"  patience {event.patience_left}"
    return (
        f"step {step:>11}  train {format.loss(event.train_loss)}  val {format.loss(event.val_loss)}  "
        f"nats/char {format.loss(event.nats_per_char)}{' *' if event.is_best else '  '}  lr {format.rate(event.lr):<7}  "
        f"{format.count(event.tokens_per_s)} tokens/s  {format.duration(event.elapsed_s)}{patience}"
    ).rstrip()


@dataclass
class TrainingState:
    """Everything that the live screen shows, collected from the events so far."""

    started: Started | None = None
    evaluations: list[Evaluated] = field(default_factory=list)
    progress: Progress | None = None
    sample: Sampling | Sampled | None = None  # the latest, which may still grow
    stopped: Stopped | None = None
    notices: list[str] = field(default_factory=list)
    time_limit_s: float = 0.0
    scoring: Scoring | None = None  # None unless the model is being evaluated or scored
    scoring_since: float = 0.0  # monotonic seconds

    def add(self, event: Event) -> None:
        """Update the state with `event`."""
        if isinstance(event, Scoring):
            if self.scoring is None or event.done < self.scoring.done:
                self.scoring_since = time.monotonic()
            self.scoring = event
            return
        self.scoring = None
        if isinstance(event, Sampling | Sampled):
            self.sample = event
            return
        if isinstance(event, Started):
            self.started = event
        elif isinstance(event, Planned) and self.started is not None:
            self.started = self.started.model_copy(update={"max_steps": event.max_steps})
        elif isinstance(event, Resumed):
            self.notices.append(describe_resume(event))
        elif isinstance(event, Evaluated):
            self.evaluations.append(event)
        elif isinstance(event, Progress):
            self.progress = event
        elif isinstance(event, Skipped):
            self.notices.append(describe_skip(event))
        elif isinstance(event, Stopped):
            self.stopped, self.sample = event, None  # a sample of the best weights follows

    @property
    def latest(self) -> Progress | Evaluated | None:
        """The newest event that holds speed and time."""
        return max((event for event in (*self.evaluations[-1:], self.progress) if event), key=lambda event: event.step, default=None)

    @property
    def best(self) -> Evaluated | None:
        return next((event for event in reversed(self.evaluations) if event.is_best), None)

    def scoring_words(self) -> str:
        """What is being scored, and how long it still takes."""
        if (now := self.scoring) is None:
            return ""
        what = "scoring the whole validation text" if now.final else f"step {now.step:,} · evaluating"
        if not now.done:
            return what
        left = (time.monotonic() - self.scoring_since) * max(0, now.total - now.done) / now.done
        return f"{what} · {format.duration(left)} left"

    @property
    def remaining_s(self) -> float | None:
        """Remaining seconds at the present speed; None if the speed is not known."""
        now = self.latest
        if self.started is None or now is None or now.tokens_per_s <= 0 or now.step == 0:
            return None
        tokens_per_step = self.started.tokens_per_step or now.tokens_seen / now.step
        left = max(0, self.started.max_steps - now.step) * tokens_per_step / now.tokens_per_s
        return min(left, max(0.0, self.time_limit_s - now.elapsed_s)) if self.time_limit_s else left


class TrainingScreen:
    """A TrainingState as rich draws it: progress first, because the end is cut where there is no room."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self._curve: tuple[tuple[int, int, int], Text | None] = ((0, 0, 0), None)  # kept: it is drawn four times a second

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        state = self.state
        width, height = options.max_width, screen.size.height
        if state.started is None:
            yield Text("Getting ready …", style="dim")
            return
        head = [*self._status(state.started, width)]
        about = describe_start(state.started).removeprefix(state.started.run)
        head += Text.assemble((one_line(state.started.run), "bold"), about).wrap(screen, width)
        head += [Text(f"  {one_line(notice)}", "dim", overflow="ellipsis", no_wrap=True) for notice in state.notices[-3:]]
        yield from head
        room = height - len(head) - _TABLE_FRAME - 1
        wide, curves = width >= _WIDE, len(state.evaluations) >= 3
        others = _FEW_ROWS + _CHART_FRAME + (0 if wide else _MOST_CURVE)
        sample = [] if state.sample is None else sample_lines(state.sample, screen, width, min(_MOST_SAMPLE, room - others - 1))
        room -= len(sample)
        if wide and curves:
            yield self._side_by_side(max(3, room), width, not screen.no_color)
        else:
            chart_height = min(_MOST_CURVE, room - _FEW_ROWS - _CHART_FRAME) if curves else 0
            rows = max(3, room - (chart_height + _CHART_FRAME if chart_height >= 4 else 0))
            yield evaluation_table(state.evaluations, min(rows, 12), width)
            if chart_height >= 4 and (chart := self._chart(width, chart_height, not screen.no_color)):
                yield chart
        yield from sample

    def _side_by_side(self, room: int, width: int, colour: bool) -> RenderableType:
        """The evaluations with the curves to their right, for a wide screen."""
        from rich.table import Table

        evaluations = evaluation_table(self.state.evaluations, min(room, 18), _WIDE)
        chart = self._chart(width - _TABLE_WIDTH, min(room, 18) + 1, colour)
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=_TABLE_WIDTH - 1)
        grid.add_column()
        grid.add_row(evaluations, chart or "")
        return grid

    def _chart(self, width: int, height: int, colour: bool) -> Text | None:
        """The curves under their unit; None without room."""
        from rich.text import Text

        key = (len(self.state.evaluations), width, height)
        if self._curve[0] != key:
            chart = terminal_chart(loss_curves(self.state.evaluations), width=min(width, 160), height=height, colour=colour)
            title = Text(f"{loss_unit(self.state.evaluations)}, against steps\n", style="dim")
            self._curve = (key, Text.assemble(title, Text.from_ansi(chart)) if chart else None)
        return self._curve[1]

    def _status(self, started: Started, width: int) -> Iterator[RenderableType]:
        """The bar with the time left, the numbers of now, and the experts' shares: a line each."""
        from rich.text import Text

        state, now = self.state, self.state.latest
        total = started.max_steps
        if state.scoring is not None:
            yield progress_bar(state.scoring.done, state.scoring.total, [state.scoring_words()], width)
        elif now is None:
            yield progress_bar(0, total, [f"step 0/{total:,}", "the first steps"], width)
        else:
            yield progress_bar(now.step, max(total, now.step), self._parts(now, total), width)
        last = state.evaluations[-1] if state.evaluations else None
        if state.stopped is None and (beat := state.progress) is not None:
            about = f"now: train {format.loss(beat.train_loss)} · lr {format.rate(beat.lr)} · {format.count(beat.tokens_per_s)} tokens/s"
            yield Text(about, style="dim", no_wrap=True, overflow="ellipsis")
        if last is not None and last.expert_load:
            yield expert_text(last.expert_load, last.router_entropy)

    def _parts(self, now: Progress | Evaluated, total: int) -> list[str]:
        """What stands behind the bar, the most important first."""
        state = self.state
        parts = [f"step {now.step:,}/{total:,}"]
        if state.stopped is not None:
            parts.append(REASONS[state.stopped.stop_reason])
        elif (left := state.remaining_s) is not None:
            parts.append(f"{format.duration(left)} left")
        if state.evaluations and (patience := state.evaluations[-1].patience_left) is not None:
            parts.append(f"patience {patience}")
        return [*parts, f"{format.duration(now.elapsed_s)} elapsed"]


def sample_lines(sample: Sampling | Sampled, screen: Console, width: int, most: int) -> list[Text]:
    """What the model writes, under a heading, in at most so many lines; none where there is room for less than a few."""
    from rich.text import Text

    if most < _LEAST_SAMPLE:
        return []
    text = printable(unix_lines(sample.prompt + sample.text)).strip("\n").expandtabs(4)
    lines = Text(text).wrap(screen, width - 2)
    if len(lines) >= most:
        lines = Text(text.replace("\n", LINE_BREAK)).wrap(screen, width - 2)
    shown = [Text.assemble("  ", line, no_wrap=True) for line in lines[: most - 1]]
    return [Text(f"what it writes after {sample.step:,} steps", "dim"), *shown]


def progress_bar(done: int, total: int, parts: Sequence[str], width: int) -> Table:
    """A progress bar with `parts` behind it, as many as fit."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    kept = list(parts)
    while len(kept) > 1 and len(" · ".join(kept)) + 7 > width:
        kept.pop()
    text = " · ".join(kept)
    bar = ProgressBar(
        total=max(total, 1),
        completed=min(done, total),
        width=max(6, min(30, width - len(text) - 1)),
        style="bright_black",  # rich's own is black on a light background
        complete_style="cyan",
        finished_style="green",
    )
    line = Table.grid(padding=(0, 1), expand=False)
    line.add_row(bar, Text(text, no_wrap=True, overflow="ellipsis"))
    return line


def one_loss(evaluations: Sequence[Evaluated]) -> bool:
    """Whether nats per token and nats per character are the same, as for tokens that are characters."""
    return all(event.val_loss == event.nats_per_char for event in evaluations)


def loss_unit(evaluations: Sequence[Evaluated]) -> str:
    """The unit of training and validation losses."""
    return "nats per character" if one_loss(evaluations) else "nats per token"


def evaluation_table(evaluations: list[Evaluated], rows: int, width: int) -> Table:
    """The last `rows` evaluations with the best one marked; an older best one is the first row. Narrow screens get fewer columns."""
    from rich import box
    from rich.table import Table

    best = next((event for event in reversed(evaluations) if event.is_best), None)
    shown = evaluations[-rows:]
    if best is not None and best not in shown:
        shown = [best, *shown[1:]]
    columns: list[tuple[str, int, Callable[[Evaluated], str]]] = [
        ("step", 7, lambda event: f"{event.step:,}"),
        ("train", 6, lambda event: format.loss(event.train_loss)),
        ("val", 6, lambda event: format.loss(event.val_loss)),
        ("nats/char", 9, lambda event: format.loss(event.nats_per_char)),
        ("", 1, lambda event: "★" if event is best else ""),
        ("time", 7, lambda event: format.duration(event.elapsed_s)),
        ("lr", 8, lambda event: format.rate(event.lr)),
        ("tokens/s", 8, lambda event: format.count(event.tokens_per_s)),
    ]
    if one_loss(evaluations):
        columns = [column for column in columns if column[0] != "val"]
    while sum(column[1] + 3 for column in columns) > width:
        columns.pop()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name, least, _ in columns:
        table.add_column(name, justify="right", min_width=least, no_wrap=True)
    for event in shown:
        older = event is best and event is not evaluations[-1] and shown.index(event) == 0 and len(evaluations) > rows
        table.add_row(*(cell(event) for _, _, cell in columns), style="bold green" if event is best else None, end_section=older)
    return table


def loss_curves(evaluations: list[Evaluated]) -> list[Curve]:
    """Training and validation loss against steps, without values that were not finite."""
    curves = [curve_of(label, evaluations, name) for label, name in (("training", "train_loss"), ("validation", "val_loss"))]
    return [curve for curve in curves if curve.xs]


def expert_text(load: list[list[float]], entropy: float | None) -> Any:
    """The share of tokens that each expert of each layer gets, as bars."""
    from rich.text import Text

    layers = " ".join("".join(_LEVELS[min(8, round(4 * share * len(layer)))] for share in layer) for layer in load)
    low, high = min(min(layer) for layer in load), max(max(layer) for layer in load)
    tail = "" if entropy is None else f", router entropy {entropy:.2f}"
    return Text.assemble("experts ", (layers, "cyan"), f"  {low:.0%}–{high:.0%} of tokens each{tail}", overflow="ellipsis", no_wrap=True)
