"""From a resolved configuration to a finished run directory, whoever asked for it: prepare, plan, lock, fit, show.

Under torchrun the first process alone comes this way; the others take part in what it announces (`follow`).
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from minigpt_cli.commands.init_from import Beginning, Weights, beginnings_tokenizer, check_adapters, weights_to_resume
from minigpt_cli.commands.provenance import new_record
from minigpt_cli.commands.signals import StopSignals
from minigpt_cli.config import RunConfig, leaves
from minigpt_cli.display.console import progress
from minigpt_cli.display.live_training import TrainingView, training_view
from minigpt_cli.display.tracking import check_trackers, tracking
from minigpt_cli.display.training_screen import Standings
from minigpt_cli.errors import Interrupted, MiniGPTError, RunDamaged, UsageError
from minigpt_cli.events import Event, Stopped, StopReason
from minigpt_cli.runstore.records import Base, FileRecord
from minigpt_cli.runstore.store import Run, RunStore, check_name

if TYPE_CHECKING:
    from minigpt_cli.checkpoints import ResumePoint
    from minigpt_cli.data.dataset import Dataset
    from minigpt_cli.training.distributed import World


@dataclass(frozen=True)
class Output:
    """Where the events of a training go besides the run directory."""

    json: bool = False  # to stdout, a line each
    log: tuple[str, ...] = ()  # trackers
    standings: Standings | None = None  # of the group that the run belongs to
    watch: Callable[[Event], StopReason | None] | None = None  # sees every event, and may ask to stop


@dataclass(frozen=True)
class Request:
    """One training, wanted."""

    config: RunConfig
    store: RunStore
    name: str | None = None
    preset: str | None = None
    group: str | None = None
    output: Output = Output()
    notices: list[str] = field(default_factory=list)
    beginning: Beginning | None = None  # the weights to begin from
    world: World | None = None  # the processes that train together; None: this one alone


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    run: Run
    stopped: Stopped
    signal_number: int | None


@dataclass(frozen=True)
class Job:
    """A training as the first process announces it to the others; small, since they read the large things from disk."""

    config: RunConfig  # before it is planned
    data: Path  # the folder of the tokens
    data_key: str  # of the text and settings that made them
    beginning: Beginning | None = None
    base: Base | None = None  # the weights that `beginning` has to be
    resumed: Path | None = None  # the run that goes on
    files: dict[str, FileRecord] = field(default_factory=dict)  # the save that it goes on from


@dataclass(frozen=True)
class _Prepared:
    """A training about to begin."""

    dataset: Dataset
    config: RunConfig  # with every choice made
    weights: Weights | None
    point: ResumePoint | None
    notices: list[str]

    def beginning(self) -> dict[str, Any]:
        """What `fit` begins from."""
        weights = {"weights": self.weights.tensors, "whole": self.weights.whole} if self.weights else {}
        return {"resume": self.point, **weights}


def train_new(request: Request) -> Outcome:
    """Train a new run. Raises UsageError with nothing left behind; once training began, what was saved stays."""
    _check_request(request)
    from minigpt_cli.training.distributed import World
    from minigpt_cli.training.planner import choose_device

    choose_device(request.config.compute.device)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        world, beginning = request.world or World(), request.beginning
        with beginnings_tokenizer(beginning):
            dataset = read_data(request.config, quiet=request.output.json)
        job = Job(request.config, dataset.dir, dataset.key, beginning, beginning.base() if beginning else None)
        with world.doing(job):
            prepared = _prepared(job, world, lambda: (dataset, None))
            run = Run(world.lead(lambda: _new_run(stack, request, prepared.config, dataset).dir))
            return _fit(run, prepared, world, signals, request.notices, request.output)


def _check_request(request: Request) -> None:
    """What can be refused before anything is read."""
    check_trackers(request.output.log)
    if request.name is not None:
        check_name(request.name)
        if (request.store.dir / request.name).exists():
            taken = f"run {request.name!r} exists already in {request.store.dir}"
            raise UsageError(f"{taken}: choose another --name, or --resume {request.name}")
    check_adapters(request.config, request.beginning)


def train_on(
    run: Run, store: RunStore, change: Callable[[RunConfig], RunConfig], output: Output = Output(), world: World | None = None
) -> Outcome:
    """Continue `run` from its last save, with its configuration as `change` returns it. Raises UsageError for what may not change."""
    from minigpt_cli import checkpoints
    from minigpt_cli.training import resuming
    from minigpt_cli.training.distributed import World
    from minigpt_cli.training.planner import choose_device

    check_trackers(output.log)
    choose_device(change(run.config).compute.device)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        world = world or World()
        stack.enter_context(store.lock(run))
        point = checkpoints.load_resume(run)
        saved, notices = resuming.on_processes(point.config, point.record.world_size, world.size)
        wanted, steps_done = change(saved), int(point.resume_state["step"])
        resuming.check_changes(saved, saved.model_copy(update={"data": wanted.data}), steps_done)  # before a text is encoded anew
        dataset = _data_to_resume(wanted, point, quiet=output.json)
        resuming.check_text(point.record, dataset)
        job = Job(wanted, dataset.dir, dataset.key, resumed=run.dir, files=point.record.files)
        with world.doing(job):
            prepared = _prepared(job, world, lambda: (dataset, point))
            world.lead(lambda: _begin_to_resume(run, prepared, saved, notices))
            return _fit(run.refresh(), prepared, world, signals, notices, output)


def _begin_to_resume(run: Run, prepared: _Prepared, saved: RunConfig, notices: list[str]) -> Path:
    """Make the save the newest again, under its new configuration, and add to the notices what that changes; the run. Raises UsageError."""
    from minigpt_cli import checkpoints
    from minigpt_cli.training import resuming

    point = prepared.point
    if point is not None:
        notices += resuming.check_changes(saved, prepared.config, int(point.resume_state["step"]))
        config = resuming.with_changes(point, prepared.config)
        notices += resuming.change_notices(point, config)
        record = point.record.model_copy(update={"status": "running", "stop_reason": None, "placed_at": ""})
        checkpoints.continue_from(run, point, record, config)
    return run.dir


def _prepared(job: Job, world: World, found: Callable[[], tuple[Dataset, ResumePoint | None]]) -> _Prepared:
    """Everything that training needs, in every process the same; or the same end for all. Every process calls this."""
    from minigpt_cli.training.planner import resolve

    def weights() -> Weights | None:
        if job.beginning is not None:
            if job.beginning.base() != job.base:
                raise _not_shared(job.beginning.what)
            return job.beginning.weights(config, dataset.tokenizer)
        return None if point is None or job.resumed is None else weights_to_resume(Run(job.resumed), point)

    dataset, point = world.each(found)
    config, notices = resolve(job.config, dataset, world)
    return _Prepared(dataset, config, world.each(weights), point, notices)


@contextmanager
def together() -> Iterator[World | None]:
    """The processes that torchrun started, joined; None where this one is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield None
        return
    from minigpt_cli.training.distributed import PeerLost, joined

    try:
        with joined() as world:
            yield world
    except PeerLost:
        if int(os.environ.get("LOCAL_RANK", 0)):  # one process of a machine says it
            raise typer.Exit(1) from None
        raise


def follow(world: World) -> None:
    """Take part in what the first process announces, until it leaves. Decides nothing, and says only what the first cannot know."""
    from minigpt_cli.training.distributed import Dismissed

    signal_number = None
    try:
        for job in world.jobs():
            with suppress(Dismissed):
                signal_number = _take_part(job, world)
    except Interrupted as error:  # torchrun sees this process end, and asks the others to
        raise typer.Exit(error.exit_code) from None
    if signal_number is not None:  # every process ends as the first does
        raise typer.Exit(128 + signal_number)


def _take_part(job: Job, world: World) -> int | None:
    """What `train_new` or `train_on` does in the first process, without deciding anything; the signal that ended the run."""
    from minigpt_cli.training.trainer import fit

    stopped: Event | None = None
    with StopSignals() as signals:
        prepared = _prepared(job, world, lambda: _found(job))
        run = Run(world.lead(lambda: job.data))  # the first process says which
        signals.wait_for_save(lambda message: None)
        for event in fit(run, prepared.config, prepared.dataset, should_stop=signals.poll, world=world, **prepared.beginning()):
            stopped = event
        number = stopped.stop_reason.signal_number if isinstance(stopped, Stopped) else None
        if signals.number and number is None:  # the signal came too late for this run
            raise Interrupted("stopped between two runs", signals.number)
        return number


def _found(job: Job) -> tuple[Dataset, ResumePoint | None]:
    """What the first process announced, as this one finds it on disk."""
    from minigpt_cli import checkpoints
    from minigpt_cli.data.dataset import open_dataset

    try:
        dataset = open_dataset(job.data)
        point = None if job.resumed is None else checkpoints.load_resume(Run(job.resumed))
    except RunDamaged as error:
        raise _not_shared(error) from error
    if dataset.key != job.data_key:
        raise _not_shared(job.data)
    if point is not None and point.record.files != job.files:
        raise _not_shared(job.resumed)
    return dataset, point


def _not_shared(what: object) -> UsageError:
    return UsageError(
        f"{socket.gethostname()} does not have what the first process has ({what}): every machine must see the same data and runs "
        "folders, on a shared file system (MINIGPT_DATA_DIR and MINIGPT_RUNS_DIR name them)"
    )


def _data_to_resume(config: RunConfig, point: ResumePoint, *, quiet: bool) -> Dataset:
    """The data of a run: from its text, or where that is not here any more, its tokens. Raises UsageError."""
    from minigpt_cli.data.dataset import open_dataset

    corpus = point.record.corpus
    if corpus is None or _readable(config.data.source):
        return read_data(config, quiet=quiet)
    if not Path(corpus.dataset_dir).is_dir():
        gone = f"the text {corpus.label!r} is not here, and its tokens are not in {corpus.dataset_dir}"
        raise UsageError(f"{gone}: resume in the folder where the run began, or bring the text back")
    return open_dataset(Path(corpus.dataset_dir))


def _readable(source: str) -> bool:
    """Whether the text can be read again: not so for a pipe, or a file that is gone."""
    from minigpt_cli import registry

    return source in registry.CORPORA or source == "" or (source != "-" and Path(source).exists())


def read_data(config: RunConfig, *, quiet: bool = False) -> Dataset:
    """The prepared data of `config`, with a progress bar while it is made."""
    from minigpt_cli.data.encoding import prepared

    with progress(in_bytes=True, quiet=quiet) as advance:
        return prepared(config.data, None, lambda step: advance(f"{step.phase} the text", step.done_bytes, step.total_bytes))


def _new_run(stack: ExitStack, request: Request, config: RunConfig, dataset: Dataset) -> Run:
    run = stack.enter_context(request.store.new_run(request.name, config.model.arch))
    run.write_config(config)
    run.write_tokenizer(dataset.tokenizer.to_json())
    record = new_record(run.name, preset=request.preset, group=request.group)
    asked, resolved = leaves(request.config), leaves(config)
    update = {
        "base": request.beginning.base() if request.beginning else None,
        "left_open": {name: value for name, value in asked.items() if value != resolved[name]},
    }
    run.write_record(record.model_copy(update=update))
    return run


def _fit(run: Run, prepared: _Prepared, world: World, signals: StopSignals, notices: list[str], output: Output) -> Outcome:
    from minigpt_cli.training.trainer import fit

    stopped: Stopped | None = None
    config = prepared.config
    said = [*notices, *prepared.notices, *(prepared.weights.notices if prepared.weights else [])]
    with ExitStack() as stack:
        trackers = stack.enter_context(tracking(output.log, run.dir, run.name, config.model_dump(mode="json")))
        view = stack.enter_context(training_view(json=output.json, time_limit_s=config.eval.time_limit, standings=output.standings))
        signals.wait_for_save(view.announce)
        try:
            begin = prepared.beginning()
            for event in fit(run, config, prepared.dataset, should_stop=signals.poll, world=world, notices=said, **begin):
                view = _show(view, event, signals)
                trackers.show(event)
                if output.watch and (reason := output.watch(event)):
                    signals.request(reason)
                if isinstance(event, Stopped):
                    stopped = event
        except BaseException as error:
            _record_failure(run, error)
            raise
    if stopped is None:
        raise MiniGPTError(f"training of run {run.name!r} ended without a word")
    return Outcome(run.refresh(), stopped, signals.number or (None if world.size == 1 else stopped.stop_reason.signal_number))


def _show(view: TrainingView, event: Any, signals: StopSignals) -> TrainingView:
    """Show `event`; when nobody reads any more, ask training to stop and show nothing further."""
    try:
        view.show(event)
    except BrokenPipeError:
        signals.request(StopReason.TERMINATED)
        return training_view(quiet=True)
    return view


def _record_failure(run: Run, error: BaseException) -> None:
    """Write how it ended into the record of a run that has been saved; a run that never was is removed with everything in it."""
    with suppress(MiniGPTError):
        record = run.refresh().record
        if record.status != "running":
            return
        if not record.files:
            run.file("run.json").unlink(missing_ok=True)  # new_run removes a directory without a record
            return
        reason = StopReason.FAILED
        if isinstance(error, Interrupted | KeyboardInterrupt):
            terminated = isinstance(error, Interrupted) and error.exit_code == 128 + signal.SIGTERM
            reason = StopReason.TERMINATED if terminated else StopReason.INTERRUPTED_KEYBOARD
        run.write_record(record.model_copy(update={"status": reason.status, "stop_reason": reason}))
