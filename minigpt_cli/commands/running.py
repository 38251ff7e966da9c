"""From a resolved configuration to a finished run directory, whoever asked for it: prepare, plan, lock, fit, show.

Under torchrun every process comes through here; one of them writes and speaks, and an error of that one ends all.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from minigpt_cli.commands.beginning import Beginning, Weights, beginnings_tokenizer, check_adapters, weights_to_resume
from minigpt_cli.commands.provenance import new_record
from minigpt_cli.commands.signals import StopSignals
from minigpt_cli.config import RunConfig, leaves
from minigpt_cli.display.live_training import TrainingView, training_view
from minigpt_cli.display.progress import progress
from minigpt_cli.display.tracking import check_trackers, tracking
from minigpt_cli.display.training_screen import Standings
from minigpt_cli.errors import Interrupted, MiniGPTError, UsageError
from minigpt_cli.events import Event, Stopped
from minigpt_cli.runstore import Run, RunStore, check_name

if TYPE_CHECKING:
    from minigpt_cli.checkpoints import ResumePoint
    from minigpt_cli.data.dataset import Dataset
    from minigpt_cli.training.distributed import World

_SIGPIPE_STOP = 15  # a reader that went away is a request to stop and save


@dataclass(frozen=True)
class Output:
    """Where the events of a training go besides the run directory."""

    json: bool = False  # to stdout, a line each
    log: tuple[str, ...] = ()  # trackers
    standings: Standings | None = None  # of the group that the run belongs to
    watch: Callable[[Event], int | None] | None = None  # sees every event; a number is a wish to stop, as of a signal


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


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    run: Run
    stopped: Stopped
    signal_number: int | None
    is_writer: bool = True


def train_new(request: Request) -> Outcome:
    """Train a new run. Raises UsageError with nothing left behind; once training began, what was saved stays."""
    _check_request(request)
    from minigpt_cli.training.distributed import joined
    from minigpt_cli.training.planning import choose_device

    device, _ = choose_device(request.config.compute.device)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        world = stack.enter_context(joined(device))
        with beginnings_tokenizer(request.beginning):
            dataset, config, notices = _prepare(request.config, world, quiet=request.output.json)
        weights = None if request.beginning is None else request.beginning.weights(config, dataset.tokenizer)
        run = _in_step(world, lambda: _new_run(stack, request, config, dataset))
        said = [*request.notices, *notices, *(weights.notices if weights else [])]
        return _fit(run, config, dataset, world, signals, said, output=request.output, weights=weights)


def _check_request(request: Request) -> None:
    """What can be refused before anything is read."""
    check_trackers(request.output.log)
    if request.name is not None:
        check_name(request.name)
        if (request.store.dir / request.name).exists():
            taken = f"run {request.name!r} exists already in {request.store.dir}"
            raise UsageError(f"{taken}: choose another --name, or --resume {request.name}")
    check_adapters(request.config, request.beginning)


def train_on(run: Run, store: RunStore, change: Callable[[RunConfig], RunConfig], output: Output = Output()) -> Outcome:
    """Continue `run` from its last save, with its configuration as `change` returns it. Raises UsageError for what may not change."""
    from minigpt_cli import checkpoints
    from minigpt_cli.training import resuming
    from minigpt_cli.training.distributed import joined
    from minigpt_cli.training.planning import choose_device

    check_trackers(output.log)
    wanted = change(run.config)
    device, _ = choose_device(wanted.compute.device)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        world = stack.enter_context(joined(device))
        _in_step(world, lambda: stack.enter_context(store.lock(run)))
        point = checkpoints.load_resume(run)
        wanted, steps_done = change(point.config), int(point.resume_state["step"])
        other_text = point.config.model_copy(update={"data": wanted.data})
        resuming.check_changes(point.config, other_text, steps_done)  # before a text is encoded anew
        dataset, wanted, notices = _prepare(wanted, world, quiet=output.json, fallback=point)
        resuming.check_text(point.record, dataset)
        reasons = resuming.check_changes(point.config, wanted, steps_done)
        wanted = resuming.with_changes(point, wanted)
        record = point.record.model_copy(update={"status": "running", "stop_reason": None, "placed_at": ""})
        _in_step(world, lambda: checkpoints.continue_from(run, point, record, wanted) and run)
        said = [*reasons, *resuming.change_notices(point, wanted), *notices]
        return _fit(
            run.refresh(), wanted, dataset, world, signals, said, output=output, resume=point, weights=weights_to_resume(run, point)
        )


def _prepare(config: RunConfig, world: World, *, quiet: bool, fallback: ResumePoint | None = None) -> tuple[Dataset, RunConfig, list[str]]:
    """The data, and the configuration with every choice made: by the writing process first, so that the others find its files."""
    from minigpt_cli.data.dataset import open_dataset
    from minigpt_cli.training.planning import resolve

    def data() -> Path:
        corpus = fallback.record.corpus if fallback is not None else None
        if corpus is None or _readable(config.data.source):
            return read_data(config, quiet=quiet).dir
        if not Path(corpus.dataset_dir).is_dir():
            gone = f"the text {corpus.label!r} is not here, and its tokens are not in {corpus.dataset_dir}"
            raise UsageError(f"{gone}: resume in the folder where the run began, or bring the text back")
        return Path(corpus.dataset_dir)

    folder = _in_step(world, data)
    dataset = open_dataset(folder)
    resolved: tuple[RunConfig, list[str]] = resolve(config, dataset, world)
    return dataset, world.share(resolved[0]), resolved[1]


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


def _fit(
    run: Run,
    config: RunConfig,
    dataset: Dataset,
    world: World,
    signals: StopSignals,
    notices: list[str],
    *,
    output: Output,
    weights: Weights | None,
    resume: ResumePoint | None = None,
) -> Outcome:
    from minigpt_cli.training.trainer import fit

    stopped: Stopped | None = None
    settings = config.model_dump(mode="json")
    with ExitStack() as stack:
        trackers = stack.enter_context(tracking(output.log if world.is_writer else (), run.dir, run.name, settings))
        view = stack.enter_context(
            training_view(json=output.json, quiet=not world.is_writer, time_limit_s=config.eval.time_limit, standings=output.standings)
        )
        signals.wait_for_save(view.announce)
        try:
            begin: dict[str, Any] = {"resume": resume} | ({"weights": weights.tensors, "whole": weights.whole} if weights else {})
            for event in fit(run, config, dataset, should_stop=signals.poll, world=world, notices=notices, **begin):
                view = _show(view, event, signals)
                trackers.show(event)
                if output.watch and (wish := output.watch(event)):
                    signals.request(wish)
                if isinstance(event, Stopped):
                    stopped = event
        except BaseException as error:
            if world.is_writer:
                _record_failure(run, error)
            raise
    if stopped is None:
        raise MiniGPTError(f"training of run {run.name!r} ended without a word")
    return Outcome(run.refresh(), stopped, signals.number, world.is_writer)


def _show(view: TrainingView, event: Any, signals: StopSignals) -> TrainingView:
    """Show `event`; when nobody reads any more, ask training to stop and show nothing further."""
    try:
        view.show(event)
    except BrokenPipeError:
        signals.request(_SIGPIPE_STOP)
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
        status, reason = "failed", "failed"
        if isinstance(error, Interrupted | KeyboardInterrupt):
            terminated = isinstance(error, Interrupted) and error.exit_code == 128 + signal.SIGTERM
            status, reason = "interrupted", "terminated" if terminated else "interrupted_keyboard"
        run.write_record(record.model_copy(update={"status": status, "stop_reason": reason}))


def _in_step(world: World, action: Callable[[], Any]) -> Any:
    """What `action` returns in the writing process, in every process; its error ends all of them, and one speaks."""
    if world.size == 1:
        return action()
    value, failure = None, None
    if world.is_writer:
        try:
            value = action()
        except MiniGPTError as error:
            failure = error
    shared, code = world.share((value, failure.exit_code if failure else None))
    if failure:
        raise failure
    if code is not None:
        raise typer.Exit(code)
    return shared
