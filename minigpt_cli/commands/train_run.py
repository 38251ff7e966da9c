"""From a resolved configuration to a finished run directory: prepare the data, plan, lock, train, show."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_cli.commands.config_sources import Resolved
from minigpt_cli.commands.init_from import check_adapters, check_vocabulary
from minigpt_cli.commands.planning import left_open, planned
from minigpt_cli.commands.processes import Announcement, prepared
from minigpt_cli.commands.provenance import new_record
from minigpt_cli.commands.samples import resume_command
from minigpt_cli.commands.signals import StopSignals
from minigpt_cli.commands.teaching import (
    base_of,
    check_teachers,
    corpus_of,
    has_begun,
    has_taught,
    is_taught,
    learns_from,
    taught,
    teacher_config,
)
from minigpt_cli.commands.train_context import Context, Outcome, Training
from minigpt_cli.config import DataConfig, RunConfig, changed
from minigpt_cli.display.live_training import TrainingView, training_view
from minigpt_cli.display.tracking import check_trackers, tracking
from minigpt_cli.errors import Diverged, Interrupted, MiniGPTError, UsageError
from minigpt_cli.events import Event, Scoring, Stopped, StopReason
from minigpt_cli.runstore import replay
from minigpt_cli.runstore.directory import TEACHER, TOKENIZER, TOKENIZER_LIMIT, Run
from minigpt_cli.runstore.records import Corpus
from minigpt_cli.runstore.store import RunStore, check_name
from minigpt_cli.storage import atomic_io

if TYPE_CHECKING:
    from minigpt_cli.data.dataset import Dataset
    from minigpt_cli.tokenization.contract import Tokenizer
    from minigpt_cli.training.trainer import Job


def train_new(context: Context, wanted: Resolved, name: str | None = None, group: str | None = None) -> Training:
    """Train a new run. Raises UsageError before anything is written; after that, every save stays."""
    context = replace(context, grouped=group is not None)
    begun = context.budget_begins()
    from minigpt_cli.training.planner import check, choose_device

    config, origin, store = wanted.config, context.origin, context.store
    check_trackers(context.log)
    if name is not None and (store.dir / check_name(name)).exists():
        raise UsageError(f"run {name!r} exists already in {store.dir}: choose another --name, or --resume {name}")
    check_adapters(config, origin)
    check_vocabulary(wanted, origin)
    check_teachers(config, context.processes().size, started_elsewhere=origin is not None)
    choose_device(config.compute.device)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())

        def new(planned: RunConfig) -> Run:
            run = stack.enter_context(store.new_run(name, planned.model.arch))
            _write_new(run, context, wanted.config, planned, wanted.preset, group, **left_open(context, wanted))
            return run

        dataset = context.asked_dataset(wanted)
        config = config.changed(data=dict(dataset.cleaned))  # of prepared tokens: prompts are to be read like their text
        context.datasets[config.data] = dataset
        config, why = planned(context, wanted, config, dataset, begun, group)
        context.dataset(config.data)  # in the tokens of the plan
        notices = [*wanted.notices, *why]
        if not config.distil.teachers:
            return (yield from _train_from_start(context, config, signals, notices, begun, new))
        if wanted.typed & {"teachers", "max_steps", "time_budget"}:  # it does not repeat another run
            config = config.changed(distil={"taught_by": ""})
        check(config, context.dataset(config.data))
        return (yield from _train_taught(context, new(config), config, signals, notices, begun))


def _train_from_start(
    context: Context, config: RunConfig, signals: StopSignals, notices: list[str], begun: float | None, begin: Callable[[RunConfig], Run]
) -> Training:
    """Train a run from step 0; `begin` gives its folder, made or completed for the resolved configuration. `begun`: when its time budget
    did, if it keeps one; None: it begins with the first step."""
    origin, world, dataset = context.origin, context.processes(), context.dataset(config.data)
    base, timed = origin.base() if origin else None, config.optim.max_steps == 0
    announced = Announcement(config, dataset.dir, dataset.key, origin, base, timed=timed, begun=begun if timed else None)
    with world.announced(announced):
        job = prepared(announced, world, lambda: (dataset, None), lambda resolved: (begin(resolved).dir, None))
        return (yield from _fit(replace(job, notices=[*notices, *job.notices]), signals, context))


def _train_taught(context: Context, run: Run, config: RunConfig, signals: StopSignals, notices: list[str], begun: float | None) -> Training:
    """Train the teacher of a run, or what is left of it, and then the run. `begun`: when the time budget did; None: with the first step of
    its first teacher, perhaps in another session."""
    with _noted(run):
        if not is_taught(run):
            outcome = yield from _train_teacher(context, run, config, notices, begun)
            if not is_taught(run):
                return _stopped_with(outcome, run)
        if begun is None:
            begun = time.perf_counter() - Run(run.file(TEACHER)).record.elapsed_s

        def complete(resolved: RunConfig) -> Run:
            run.write_config(resolved)
            record = run.refresh().record
            opened = (record.left_open or {}) | changed(config, resolved)
            run.write_record(record.model_copy(update={"left_open": opened, "teacher": base_of(run)}))
            return run

        return (yield from _train_from_start(context, taught(run, config), signals, [learns_from(run)], begun, complete))


def _stopped_with(outcome: Outcome, run: Run) -> Outcome:
    """The outcome of a run whose teacher was stopped, with that in its record."""
    reason = outcome.stopped.stop_reason
    record = run.write_record(run.refresh().record.model_copy(update={"status": reason.status, "stop_reason": reason}))
    return Outcome(run.refresh(), replay.stopped(record, reason), outcome.signal_number)


def _train_teacher(context: Context, run: Run, config: RunConfig, notices: list[str], begun: float | None) -> Training:
    """Train the teacher of `run`, in its folder, from the beginning or from where it was stopped. `begun`: when the time budget did."""
    from minigpt_cli.training.clock import spent_s

    folder, teacher = RunStore(run.dir), Run(run.file(TEACHER))
    context = replace(context, store=folder, log=(), watch=None)
    if has_begun(teacher):
        return (yield from train_on(context, teacher, lambda saved: saved))
    if teacher.dir.exists():
        folder.remove(teacher)  # it was killed before its first save
    teacher_of_run = teacher_config(config, spent_s(config, begun))
    return (yield from _train_new_teacher(context, teacher_of_run, [*notices, f"{run.name} will learn from this model"]))


def _train_new_teacher(context: Context, config: RunConfig, notices: list[str]) -> Training:
    begun = context.budget_begins()
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())

        def new(planned: RunConfig) -> Run:
            run = stack.enter_context(context.store.new_run(TEACHER))
            _write_new(run, context, config, planned)
            return run

        if config.distil.teachers:
            return (yield from _train_taught(context, new(config), config, signals, notices, begun))
        return (yield from _train_from_start(context, config, signals, notices, begun, new))


def _write_new(
    run: Run, context: Context, wanted: RunConfig, planned: RunConfig, preset: str | None = None, group: str | None = None, **left: str
) -> None:
    """Write the files of a run that exist before step 0; `left`: the settings that were left to a plan."""
    run.write_config(planned)
    run.write_tokenizer(context.dataset(planned.data).tokenizer.to_json())
    update: dict[str, Any] = {"base": context.origin.base() if context.origin else None, "left_open": changed(wanted, planned) | left}
    update["arch"] = planned.model.arch  # for whoever lists the run while its teacher is trained
    run.write_record(new_record(run.name, preset=preset, group=group).model_copy(update=update))


def train_on(context: Context, run: Run, change: Callable[[RunConfig], RunConfig]) -> Training:
    """Continue `run` from its last save, with the configuration that `change` returns. Raises UsageError for a forbidden change."""
    from minigpt_cli import checkpoints
    from minigpt_cli.training import resuming
    from minigpt_cli.training.planner import choose_device

    check_trackers(context.log)
    with ExitStack() as stack:
        signals, world = stack.enter_context(StopSignals()), context.processes()
        stack.enter_context(context.store.lock(run))
        check_teachers(run.config, world.size, started_elsewhere=False)
        if has_taught(run):
            raise UsageError(
                f"{run.name} has taught already, and a change would make the run that learns from it another: leave it as it is"
            )
        if not run.record.files and has_begun(run):
            return (yield from _go_on_teaching(context, run, change, signals))
        point = checkpoints.load_resume(run)
        saved, _ = resuming.on_processes(point.config, point.record.world_size, world.size)
        wanted = change(saved)
        choose_device(wanted.compute.device)
        dataset = _data_again(context, run.name, point.config.data, point.record.corpus, point.tokenizer)
        announced = Announcement(wanted, dataset.dir, dataset.key, resumed=run.dir, files=point.record.files)
        with world.announced(announced):
            find, begin = (lambda: (dataset, point)), (lambda planned: (run.dir, resuming.changes(point, planned, world.size)))
            return (yield from _fit(prepared(announced, world, find, begin), signals, context))


def _go_on_teaching(context: Context, run: Run, change: Callable[[RunConfig], RunConfig], signals: StopSignals) -> Training:
    """Continue a run that has not begun itself. Raises UsageError for a change that its teachers would have needed."""
    from minigpt_cli.tokenization.pretrained import saved_tokenizer

    saved = run.config
    config = change(saved)
    fixed = {"model", "data", "distil", "compute", "seed"} if is_taught(run) else set(RunConfig.model_fields)
    if wrong := sorted(name for name in changed(saved, config) if name.partition(".")[0] in fixed):
        names = ", ".join(name.rpartition(".")[2] for name in wrong)
        raise UsageError(f"the teachers of {run.name!r} are trained already, or in part, with another {names}: leave it out, or train anew")
    tokenizer = saved_tokenizer(atomic_io.read_bounded(run.file(TOKENIZER), TOKENIZER_LIMIT), run.file(TOKENIZER))
    context.datasets[config.data] = _data_again(context, run.name, config.data, corpus_of(run), tokenizer)
    run.write_record(run.record.model_copy(update={"status": "running", "stop_reason": None}))
    return (yield from _train_taught(context, run.refresh(), config, signals, [], None))


def _data_again(context: Context, name: str, data: DataConfig, corpus: Corpus | None, tokenizer: Tokenizer) -> Dataset:
    """The data of the run of this name: from its text or, if the text is missing, from its tokens. Raises UsageError if both are missing or
    differ."""
    from minigpt_cli import registry
    from minigpt_cli.data.dataset import open_dataset

    has_tokenizer = data.tokenizer in registry.TOKENIZERS or Path(data.tokenizer).exists()  # that of --init-from may be gone
    if corpus is None or (has_tokenizer and all(map(_readable, (*data.sources, *data.val, *data.test)))):
        dataset = context.dataset(data, again=True)
    elif Path(corpus.dataset_dir).is_dir():
        dataset = open_dataset(Path(corpus.dataset_dir), verify=context.verify_data)
    else:
        missing = f"the text {corpus.label!r} is missing, and its tokens are not in {corpus.dataset_dir}"
        raise UsageError(f"{missing}: resume in the folder where the run was started, or restore the text")
    if corpus is not None and corpus.sha256 != dataset.sha256:
        raise UsageError(
            f"the text of {corpus.label!r} has changed since this run started "
            f"(sha256 {corpus.sha256[:12]}, now {dataset.sha256[:12]}): "
            "restore it, or start a new run with --init-from"
        )
    if corpus is not None and not _is_cut_as(dataset, corpus, tokenizer):
        with suppress(MiniGPTError):
            if _is_cut_as(before := open_dataset(Path(corpus.dataset_dir)), corpus, tokenizer):
                return before
        raise UsageError(
            f"this edition of minigpt cuts the text of {corpus.label!r} into other tokens than {name!r} began with, and those are no "
            f"longer in {corpus.dataset_dir}: restore that folder, or start a new run with --init-from {name}"
        )
    return dataset


def _is_cut_as(dataset: Dataset, corpus: Corpus, tokenizer: Tokenizer) -> bool:
    """Whether these are the splits and the tokens that a run was trained on."""
    return dataset.has_splits_of(corpus) and dataset.tokenizer.token_bytes() == tokenizer.token_bytes()


def _readable(source: str) -> bool:
    """Whether the text can be read again without a connection. A pipe or a deleted file cannot."""
    from minigpt_cli import registry

    return source in registry.CORPORA or source == "" or (source != "-" and Path(source).exists())


def _fit(job: Job, signals: StopSignals, context: Context) -> Training:
    from minigpt_cli.training.trainer import fit

    stopped: Stopped | None = None
    run, config = job.run, job.config
    with ExitStack() as stack:
        trackers = stack.enter_context(tracking(context.log, run.dir, run.name, config.model_dump(mode="json")))
        shown: dict[str, Any] = {"json": context.json, "quiet": context.quiet}
        view = stack.enter_context(training_view(**shown, time_limit_s=config.eval.time_limit, standings=context.standings))
        signals.wait_for_save(view.announce)
        stack.enter_context(_noted(run))

        def show(event: Event) -> None:
            nonlocal view
            view = _show(view, event, signals)
            if isinstance(event, Scoring) and event.final:
                signals.promise = "Ending the final score; the run is finished."

        for event in fit(replace(job, samples_on_screen=view.shows_samples), signals.poll, show):
            show(event)
            trackers.show(event)
            if context.watch and (reason := context.watch(event)):
                signals.request(reason)
            if isinstance(event, Stopped):
                stopped = event
            yield event
    if stopped is None:
        raise MiniGPTError(f"training of run {run.name!r} ended unexpectedly: see minigpt runs verify {run.name}")
    return Outcome(run.refresh(), stopped, signals.number or (None if job.world.size == 1 else stopped.stop_reason.signal_number))


def _show(view: TrainingView, event: Any, signals: StopSignals) -> TrainingView:
    """Show `event`. If the reader has closed the pipe, ask training to stop and show nothing more."""
    try:
        view.show(event)
    except BrokenPipeError:
        signals.request(StopReason.TERMINATED)
        return training_view(quiet=True)
    return view


@contextmanager
def _noted(run: Run) -> Iterator[None]:
    """Note in the record of `run` what ended the block too early; an interruption then says how to go on."""
    try:
        yield
    except Interrupted as error:
        _record_failure(run, error)
        raise Interrupted(_stopped_at_once(run), error.signal_number) from None
    except BaseException as error:
        _record_failure(run, error)
        raise


def _stopped_at_once(run: Run) -> str:
    """What remains of a run that a second signal ended, and how to continue it."""
    with suppress(MiniGPTError):
        if (record := run.refresh().record).files:
            return f"stopped at once; step {record.stop_step:,} is saved: {resume_command(run)}"
    if run.file(TEACHER).is_dir():
        return f"stopped at once: {resume_command(run)}"
    return "stopped at once, before the first save: the same command starts again"


def _record_failure(run: Run, error: BaseException) -> None:
    """Write the failure into the record of a run that has a save; remove a run without a save."""
    with suppress(MiniGPTError):
        record = run.refresh().record
        if record.status != "running":
            return
        if not record.files and not run.file(TEACHER).is_dir():
            run.file("run.json").unlink(missing_ok=True)  # new_run removes a directory without a record
            return
        reason = StopReason.DIVERGED if isinstance(error, Diverged) else StopReason.FAILED
        if isinstance(error, Interrupted | KeyboardInterrupt | GeneratorExit):
            terminated = isinstance(error, Interrupted) and error.exit_code == 128 + signal.SIGTERM
            reason = StopReason.TERMINATED if terminated else StopReason.INTERRUPTED_KEYBOARD
        run.write_record(record.model_copy(update={"status": reason.status, "stop_reason": reason}))
