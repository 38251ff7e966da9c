"""--log: the numbers of evaluations for TensorBoard, trackio or Weights & Biases too, each under its field's name.

A tracker gets the same events as the screen. If one fails, a warning says so once and training goes on without it; the run directory
has all numbers in any case. Each tracker is imported only if it is asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigpt_cli.display import console
from minigpt_cli.errors import MissingExtra, unknown_name
from minigpt_cli.events import Evaluated, Event, Stopped

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "minigpt"
_NOT_NUMBERS = {"run", "step", "event", "is_best", "expert_load"}


class TensorBoard:
    """Event files in `<run>/tensorboard/`: tensorboard --logdir runs."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder / "tensorboard"), flush_secs=5)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event with a scalar for each number."""
        summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.add_event(self._event(step=step, wall_time=time.time(), summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Client:
    """trackio or wandb, which share their interface."""

    def __init__(self, module: Any, name: str, config: Mapping[str, Any]) -> None:
        self._module = module
        self._module.init(project=PROJECT, name=name, config=dict(config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """Send the remaining rows."""
        self._module.finish()


def open_tracker(kind: str, folder: Path, name: str, config: Mapping[str, Any]) -> TensorBoard | Client:
    """A tracker for a run; `kind` is one of TRACKERS. Raises MissingExtra if it cannot be imported."""
    if kind == "wandb":
        os.environ.setdefault("WANDB_SILENT", "true")  # stdout is for the result
    try:
        return TensorBoard(folder) if kind == "tensorboard" else Client(import_module(kind), name, config)
    except ImportError:
        raise MissingExtra(f"--log {kind}", kind) from None


def check_trackers(kinds: Sequence[str]) -> None:
    """Raise UsageError for a tracker that is unknown or not installed."""
    for kind in kinds:
        if kind not in TRACKERS:
            raise unknown_name("tracker", kind, TRACKERS)
        if find_spec(kind) is None:
            raise MissingExtra(f"--log {kind}", kind)


class Trackers:
    """The trackers of a run, by kind. One that raises an error is removed with a warning."""

    def __init__(self, trackers: Mapping[str, TensorBoard | Client]) -> None:
        self._trackers = dict(trackers)

    def show(self, event: Event) -> None:
        """Write the numbers of an evaluation or of the end."""
        if not isinstance(event, Evaluated | Stopped):
            return
        values = numbers(event)
        for kind, tracker in list(self._trackers.items()):
            try:
                tracker.write(event.step, values)
            except (OSError, RuntimeError, ValueError) as error:
                console.warn(f"--log {kind} failed and is left out: {error}")
                del self._trackers[kind]

    def close(self) -> None:
        """Close all trackers."""
        for kind, tracker in self._trackers.items():
            try:
                tracker.close()
            except (OSError, RuntimeError, ValueError) as error:
                console.warn(f"--log {kind} did not finish: {error}")


def numbers(event: Evaluated | Stopped) -> dict[str, float]:
    """The numbers of an event by field name; the expert load as one number for each layer and expert."""
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
    """The trackers of these kinds, closed at the end of the block."""
    trackers = Trackers({kind: open_tracker(kind, folder, name, config) for kind in dict.fromkeys(kinds)})
    with closing(trackers):
        yield trackers
