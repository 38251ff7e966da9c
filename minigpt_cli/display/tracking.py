"""--log: the same events, written for TensorBoard, trackio or Weights & Biases too. Each is imported when it is asked for.

A tracker is a sink like the screen: it gets every event, and writes the numbers of evaluations under their own names. What
is in the run directory stays the truth; a tracker that fails is named once, on stderr, and training goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from minigpt_cli.display import console
from minigpt_cli.errors import MissingExtra, unknown_name
from minigpt_cli.events import Evaluated, Event, Stopped

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "minigpt"
_NOT_NUMBERS = {"run", "step", "event", "is_best", "expert_load"}


class Tracker(Protocol):
    """Somewhere that numbers go."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run>/tensorboard/`: tensorboard --logdir runs."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder / "tensorboard"), flush_secs=5)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event with a scalar for each number."""
        import time

        summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.add_event(self._event(step=step, wall_time=time.time(), summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


class _Client:
    """trackio and wandb, which share their interface."""

    def __init__(self, module: Any, name: str, config: Mapping[str, Any]) -> None:
        self._module = module
        self._module.init(project=PROJECT, name=name, config=dict(config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._module.finish()


def open_tracker(kind: str, folder: Path, name: str, config: Mapping[str, Any]) -> Tracker:
    """The tracker of this kind, which `check_trackers` has let pass, for a run. Raises MissingExtra where it cannot be imported."""
    from importlib import import_module

    if kind == "wandb":
        os.environ.setdefault("WANDB_SILENT", "true")  # stdout belongs to the result
    try:
        return TensorBoard(folder, name, config) if kind == "tensorboard" else _Client(import_module(kind), name, config)
    except ImportError:
        raise MissingExtra(f"--log {kind}", kind) from None


def check_trackers(kinds: Sequence[str]) -> None:
    """Raise UsageError for a tracker that is unknown or not installed, before anything begins."""
    from importlib.util import find_spec

    for kind in kinds:
        if kind not in TRACKERS:
            raise unknown_name("tracker", kind, TRACKERS)
        if find_spec(kind) is None:
            raise MissingExtra(f"--log {kind}", kind)


class Trackers:
    """Every tracker of a run; what one of them raises is told once and it is left out from then on."""

    def __init__(self, trackers: Sequence[tuple[str, Tracker]]) -> None:
        self._trackers = list(trackers)

    def show(self, event: Event) -> None:
        """Write the numbers of an evaluation, or of the end."""
        if not isinstance(event, Evaluated | Stopped):
            return
        values = numbers(event)
        for entry in list(self._trackers):
            kind, tracker = entry
            try:
                tracker.write(event.step, values)
            except (OSError, RuntimeError, ValueError) as error:
                console.warn(f"--log {kind} failed and is left out: {error}")
                self._trackers.remove(entry)

    def close(self) -> None:
        """Finish all."""
        for kind, tracker in self._trackers:
            try:
                tracker.close()
            except (OSError, RuntimeError, ValueError) as error:
                console.warn(f"--log {kind} did not finish: {error}")


def numbers(event: Evaluated | Stopped) -> dict[str, float]:
    """The numbers of an event under their own names; expert load as one for each layer and expert."""
    values = {
        name: float(value)
        for name, value in event.model_dump(mode="json").items()
        if name not in _NOT_NUMBERS and isinstance(value, int | float) and not isinstance(value, bool)
    }
    if isinstance(event, Evaluated) and event.expert_load:
        for layer, shares in enumerate(event.expert_load):
            values |= {f"expert_load/layer{layer}/expert{expert}": share for expert, share in enumerate(shares)}
    return values


@contextmanager
def tracking(kinds: Sequence[str], folder: Path, name: str, config: Mapping[str, Any]) -> Iterator[Trackers]:
    """The trackers of these kinds, open for the block."""
    with ExitStack() as stack:
        trackers = Trackers([(kind, open_tracker(kind, folder, name, config)) for kind in dict.fromkeys(kinds)])
        stack.callback(trackers.close)
        yield trackers
