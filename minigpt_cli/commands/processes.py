"""The processes that torchrun starts: the first one runs the command, the others take part in the runs that it announces.

Every process prepares a run with the same code of this module.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from minigpt_cli.commands.init_from import Origin, weights_to_resume
from minigpt_cli.commands.signals import StopSignals
from minigpt_cli.commands.teaching import teacher_of
from minigpt_cli.config import RunConfig
from minigpt_cli.display import waiting
from minigpt_cli.errors import Interrupted, RunDamaged, UsageError
from minigpt_cli.events import Stopped
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Base, FileRecord

if TYPE_CHECKING:
    from minigpt_cli.checkpoints import ResumePoint
    from minigpt_cli.data.dataset import Dataset
    from minigpt_cli.training.distributed import World
    from minigpt_cli.training.resuming import Changes
    from minigpt_cli.training.state import StartWeights
    from minigpt_cli.training.trainer import Job


@dataclass(frozen=True)
class Announcement:
    """The next run of the first process. It is small: the other processes read data and weights from disk."""

    config: RunConfig  # before planning
    data: Path  # the folder of the tokens
    data_key: str  # hash of the text and the settings that made the tokens
    origin: Origin | None = None
    base: Base | None = None  # the expected weights of `origin`
    resumed: Path | None = None  # the run to resume
    files: dict[str, FileRecord] = field(default_factory=dict)  # the save to resume from
    dry_run: bool = False  # only plan and measure
    timed: bool = False  # a new run that keeps its time budget
    begun: float | None = None  # when that began, by time.perf_counter of the first process; None: with the first step


def prepared(
    announced: Announcement,
    world: World,
    find: Callable[[], tuple[Dataset, ResumePoint | None]],
    begin: Callable[[RunConfig], tuple[Path, Changes | None]],
) -> Job:
    """A training that is ready to start. Every process calls this, and gets the same job or the same error.

    Only the first process calls `begin` with the planned configuration: it makes the run's folder, or checks the changes of a resumed run.
    """
    from minigpt_cli.training.planner import resolve
    from minigpt_cli.training.trainer import Job

    dataset, point = world.each(find)
    waiting.show("measuring what is fast on this machine")
    config, notices = resolve(announced.config, dataset, world, announced.begun)
    start = world.each(lambda: _start_weights(announced, config, dataset, point))
    folder, changes = world.lead(lambda: begin(config))
    notices = [*(changes.notices if changes else []), *notices, *(start.notices if start else [])]
    inexact = changes.inexact if changes else []
    run, config = Run(folder), changes.config if changes else config
    teacher = world.each(lambda: teacher_of(run, config))
    begun = time.perf_counter() if announced.timed and announced.begun is None else announced.begun
    return Job(run, config, dataset, world, start, teacher, point, inexact, notices, begun)


def _start_weights(announced: Announcement, config: RunConfig, dataset: Dataset, point: ResumePoint | None) -> StartWeights | None:
    if announced.origin is not None:
        if announced.origin.base() != announced.base:
            raise _not_shared(announced.origin.what)
        return announced.origin.weights(config, dataset.tokenizer)
    return None if point is None or announced.resumed is None else weights_to_resume(Run(announced.resumed), point)


@contextmanager
def together() -> Iterator[World | None]:
    """The joined processes of torchrun; None if this is the only process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield None
        return
    from minigpt_cli.training.distributed import PeerLost, joined

    try:
        with joined() as world:
            yield world
    except PeerLost:
        if int(os.environ.get("LOCAL_RANK", 0)):  # only one process of a machine prints the error
            raise typer.Exit(1) from None
        raise


def follow(world: World) -> None:
    """Take part in the runs that the first process announces, until it leaves. Decides nothing, and prints only errors of this process."""
    from minigpt_cli.training.distributed import Cancelled

    signal_number = None
    try:
        for announced in world.announcements():
            with suppress(Cancelled):
                signal_number = _take_part(announced, world)
    except Interrupted as error:  # torchrun sees this process end, and stops the others
        raise typer.Exit(error.exit_code) from None
    if signal_number is not None:  # every process exits with the same code as the first
        raise typer.Exit(128 + signal_number)


def _take_part(announced: Announcement, world: World) -> int | None:
    """Do the same steps as the first process without any decision. Returns the signal that ended the run."""
    from minigpt_cli.training.planner import dry_run
    from minigpt_cli.training.trainer import fit

    if announced.dry_run:
        dry_run(announced.config, world.each(lambda: _found(announced))[0], world)
        return None
    number = None
    with StopSignals() as signals:
        job = prepared(
            announced, world, lambda: _found(announced), lambda config: (announced.data, None)
        )  # the first process chooses the folder
        signals.wait_for_save(lambda message: None)
        for event in fit(job, signals.poll):
            number = event.stop_reason.signal_number if isinstance(event, Stopped) else None
        if signals.number and number is None:  # the signal came too late for this run
            raise Interrupted("stopped between two runs", signals.number)
    return number


def _found(announced: Announcement) -> tuple[Dataset, ResumePoint | None]:
    """The announced data and save, read from the disk of this process."""
    from minigpt_cli import checkpoints
    from minigpt_cli.data.dataset import open_dataset

    try:
        dataset = open_dataset(announced.data)
        point = None if announced.resumed is None else checkpoints.load_resume(Run(announced.resumed))
    except RunDamaged as error:
        raise _not_shared(error) from error
    if dataset.key != announced.data_key:
        raise _not_shared(announced.data)
    if point is not None and point.record.files != announced.files:
        raise _not_shared(announced.resumed)
    return dataset, point


def _not_shared(what: object) -> UsageError:
    return UsageError(
        f"{socket.gethostname()} does not have what the first process has ({what}): every machine must see the same data and runs "
        "folders, on a shared file system (MINIGPT_DATA_DIR and MINIGPT_RUNS_DIR name them)"
    )
