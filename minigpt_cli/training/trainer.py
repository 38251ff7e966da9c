"""Trains a run from a resolved configuration: a generator of events. Prints nothing.

The loop draws batch n, takes a step, and from time to time evaluates, saves and checks whether to stop. Everything that the next step
depends on is saved, so that a resumed run equals the uninterrupted run to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from minigpt_cli import checkpoints
from minigpt_cli.checkpoints import ResumePoint
from minigpt_cli.config import RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import masked_after
from minigpt_cli.errors import Diverged, Interrupted, RunDamaged
from minigpt_cli.evaluation.evaluate_run import evaluate_run
from minigpt_cli.events import Evaluated, Event, Planned, Progress, Resumed, Sampled, Sampling, Saved, Scoring, Skipped, StopReason
from minigpt_cli.resume_changes import parse_changes
from minigpt_cli.runstore import replay
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, RunRecord, Session
from minigpt_cli.runstore.weights import remove_unnamed
from minigpt_cli.storage.atomic_io import check_space, one_line
from minigpt_cli.training import environment, resuming
from minigpt_cli.training.clock import Clock, most_steps
from minigpt_cli.training.device_batches import DeviceBatches
from minigpt_cli.training.distributed import World
from minigpt_cli.training.evaluator import Evaluator, Measured
from minigpt_cli.training.keeping import Keeper
from minigpt_cli.training.memory import OutOfMemory, explained_out_of_memory, release_memory, smaller, smaller_notice
from minigpt_cli.training.meter import Meter
from minigpt_cli.training.sampler import Sampler
from minigpt_cli.training.state import Figures, StartWeights, StepResult, TrainingState
from minigpt_cli.training.stopping import Counters, Judge

_TOLD = 0.01  # a number of steps that changes by a smaller share is not told
_REFUSED_LIMIT = 10  # steps in a row with non-finite numbers after which a run counts as diverged

ShouldStop = Callable[[], StopReason | None]
"""The reason why the caller asks training to stop after this step, or None."""

ShowWork = Callable[[Scoring | Sampling], None]
"""Called while the model is evaluated or scored or writes a sample, each of which is one step of the generator."""


class Teacher(NamedTuple):
    """A model to learn from, and what its training and that of its own teachers took."""

    model: nn.Module
    tokens_seen: int
    elapsed_s: float


@dataclass(frozen=True)
class Job:
    """A training that is ready to start: everything is read, checked and decided."""

    run: Run
    config: RunConfig  # resolved by planner.resolve; of a resumed run, with its changes noted by resuming.changes
    dataset: Dataset
    world: World = field(default_factory=World)
    start: StartWeights | None = None
    teacher: Teacher | None = None  # with --teachers
    resume: ResumePoint | None = None
    inexact: list[str] = field(default_factory=list)  # why a resumed run is not exact to the bit
    notices: list[str] = field(default_factory=list)
    begun: float | None = None  # when the time budget that training is to keep began, by time.perf_counter; None: only the steps count
    samples_on_screen: bool = False  # a live view shows them


def fit(job: Job, should_stop: ShouldStop = lambda: None, show: ShowWork = lambda event: None) -> Iterator[Event]:
    """Train and yield events, `Stopped` last; `show` gets those that come during one piece of work.

    Raises Diverged after the last good state is saved, and a one-line MiniGPTError when memory or disk space runs out.
    """
    while True:
        try:
            with explained_out_of_memory(job.config):
                trainer = _Trainer(job)
                yield replay.started(trainer.record, job.config, [*job.notices, *trainer.keep.notices()])
                job.world.lead(trainer.check_space)
                if job.resume is not None:
                    yield trainer.continue_from(job.resume)
                yield from trainer.train(should_stop, show)
            return
        except OutOfMemory:
            if (halved := smaller(job.config, job.world.size)) is None:
                raise
        release_memory()
        job = _with_smaller_batch(job, halved)


def _with_smaller_batch(job: Job, config: RunConfig) -> Job:
    """The job with a smaller batch, from its last save if there is one."""
    restarted = replace(job, config=config, resume=None, inexact=[], notices=[smaller_notice(config)], begun=None)
    if job.run.refresh().record.files:
        point = checkpoints.load_resume(job.run)
        changes = resuming.changes(point, config, job.world.size)
        return replace(restarted, config=changes.config, resume=point, inexact=changes.inexact)
    job.run.truncate_metrics(0)
    job.run.truncate_samples(0)
    remove_unnamed(job.run, job.run.record)
    job.run.write_config(config)
    return restarted


class _Trainer:
    """The state of the loop around `TrainingState`: counters, the record, the best weights since the last save."""

    def __init__(self, job: Job) -> None:
        self.run, self.config, self.dataset, self.world = job.run, job.config, job.dataset, job.world
        self.device = self.world.device(self.config.compute.device)
        end, vocab_size = masked_after(self.config.data, self.dataset.tokenizer), self.dataset.tokenizer.vocab_size
        self.state = TrainingState(self.config, vocab_size, self.device, self.world, job.start, end, job.teacher and job.teacher.model)
        self.batches = DeviceBatches(self.config, self.dataset, self.device, self.world)
        self.evaluator = Evaluator(self.config, self.dataset, self.state)
        self.sampler = Sampler(self.config, self.dataset.tokenizer, self.state, on_screen=job.samples_on_screen)
        self.judge = Judge(self.config)
        self.meter = Meter(self.config.step_tokens(self.world.size))
        if job.teacher is not None:  # what a run took is what its teachers took too
            self.meter.resume(0, job.teacher.tokens_seen, job.teacher.elapsed_s)
        self.inexact = job.inexact
        self.saved_step = -1
        self.figures = Figures()  # of the last step, for the evaluation after it
        self.figures_step = -1
        self.result: StepResult | None = None
        self.clock: Clock | None = None
        if job.begun is not None:
            self.clock = Clock(self.config, job.begun, most_steps(self.config, self.dataset, self.world))
        self.told_steps = self.config.optim.max_steps
        self.new_best: Mapping[str, Tensor] | None = None  # weights that the next save stores as the best
        record = job.resume.record if job.resume else job.run.record
        self.record = environment.described(record, self.config, self.dataset, self.state.model, self.world)
        self.keep = Keeper(self.run, self.config, self.record, self.state, timed=self.clock is not None)

    # ---- the loop

    def train(self, should_stop: ShouldStop, show: ShowWork) -> Iterator[Event]:
        self.meter.start()
        reason = self._reason()
        while reason is None:
            self.result = self.state.step(self.meter.steps, self.batches)
            self.meter.steps += 1
            if self.meter.steps > self.told_steps:
                yield from self._tell_steps()
            progress = self._progress(self.result) if self._evaluation_due() or self.meter.is_due() else None
            yield from self._skipped(self.result)
            self.record = self.keep(self.record, self.meter.steps)
            if self._evaluation_due():
                begun = time.perf_counter()
                yield from self._evaluate(show)
                yield from self._sample(should_stop, show, evaluated=True)
                self.state.lr_scale = self.judge.tail_factor(self.meter.steps)
                yield from self._save()
                yield from self._keep_time(evaluation_s=time.perf_counter() - begun)
                self.meter.restart()  # neither is part of the training speed
            elif progress is not None:
                yield progress
                if self.world.size == 1:  # several processes do not measure at the same steps
                    yield from self._keep_time()
            if not self._evaluation_due():
                yield from self._sample(should_stop, show, evaluated=False)
            save_every = self.config.eval.save_every
            if self.saved_step != self.meter.steps and save_every and self.meter.steps % save_every == 0:
                yield from self._save()
            reason = self._agreed_reason(should_stop)
        yield from self._tell_steps()
        yield from self._finish(reason, should_stop, show)

    def _reason(self) -> StopReason | None:
        """Why training ends here, if it does. It depends only on saved state, so that a run that is killed after its last save and resumed
        ends for the same reason."""
        if self._can_read() and self.state.refused_in_a_row >= _REFUSED_LIMIT:
            return StopReason.DIVERGED
        return self.judge.reason(self.meter.steps)

    def _keep_time(self, evaluation_s: float | None = None) -> Iterator[Planned]:
        """Change the number of steps to what fits the time budget now. The first process decides."""
        if self.clock is None:
            return
        self.clock.evaluation_s = self.clock.evaluation_s if evaluation_s is None else evaluation_s
        clock = self.clock
        self.config = self.world.lead(lambda: clock.plan(self.config, self.meter.steps))
        self.state.config = self.judge.config = self.config
        yield from self._tell_steps(_TOLD)

    def _tell_steps(self, least: float = 0.0) -> Iterator[Planned]:
        """The event of a number of steps that has changed by more than the share `least` since it was told."""
        planned = self.config.optim.max_steps
        if abs(planned - self.told_steps) > least * self.told_steps:
            self.told_steps = planned
            yield Planned(run=self.run.name, step=self.meter.steps, max_steps=planned)

    def _evaluation_due(self) -> bool:
        return self.meter.steps % self.config.eval.eval_every == 0

    def _agreed_reason(self, should_stop: ShouldStop) -> StopReason | None:
        """Why training ends here, if it does: the strongest reason of any process, including signals and the time limit."""
        limit = self.config.eval.time_limit
        reason = should_stop() or self._reason()
        if reason is None and limit and self.meter.elapsed_s() >= limit:
            reason = StopReason.TIME_LIMIT
        strength = self.world.agree(reason.strength if reason else 0, self.device)
        return next((reason for reason in StopReason if reason.strength == strength), None)

    def _can_read(self) -> bool:
        """Whether reading a number from the device costs nothing: always on the CPU, elsewhere only after a progress event."""
        return self.device.type == "cpu" or self.meter.is_fresh()

    # ---- events

    def continue_from(self, resume: ResumePoint) -> Resumed:
        """Continue from a save. Raises RunDamaged if it does not fit this configuration."""
        reasons = [*self.inexact, *resuming.inexact_reasons(resume.record.computed_by, self.record.computed_by)]
        try:
            reasons += self._load(resume)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise RunDamaged(
                f"the training state of run {self.run.name!r} does not fit its configuration: {one_line(str(error))}"
            ) from error
        history = [*resume.record.resume_exact_history, Session(step=self.meter.steps, exact=not reasons, reasons=reasons)]
        record = self.record.model_copy(update={"resume_exact_history": history, "placed_at": ""})  # later than any other save
        self.record = self.world.lead(lambda: checkpoints.continue_from(self.run, resume, record, self.config))
        notices = [*resume.notices, *([f"not exact to the bit: {'; '.join(reasons)}"] if reasons else [])]
        return Resumed(run=self.run.name, step=self.meter.steps, exact=not reasons, notices=notices)

    def _load(self, resume: ResumePoint) -> list[str]:
        """Load the saved state. Returns why the save itself makes the run inexact."""
        state = resume.resume_state
        restarted = self.state.load_resume_tensors(resume.last, resume.resume)
        self.state.recompiled = state.get("recompiled") is True
        if resume.record.stop_reason is StopReason.DIVERGED:  # resuming such a run means: try again
            self.state.refused_in_a_row.zero_()
        step = self.saved_step = self.figures_step = state["step"]
        self.meter.resume(step, resume.record.tokens_seen, max(0.0, float(state["elapsed_s"])))
        new_end = any((change.step, change.setting) == (step, "max_steps") for change in parse_changes(self.config.resume_changes))
        self.judge.resume(state, resume.resume.get("reference_nats"), new_end=new_end)
        self.figures = Figures(**state["figures"])
        self.state.lr_scale = self.judge.counters.tail_factor
        reasons = [f"random numbers ({', '.join(restarted)}) start again from the seed"] if restarted else []
        return reasons + (["torch.compile compiled other code after the first step"] if self.state.recompiled else [])

    def _skipped(self, result: StepResult) -> Iterator[Skipped]:
        """The event of a refused step; on an accelerator only the last one before a progress event is reported."""
        if self._can_read() and result.refused.item():
            reason = f"loss {result.loss.item():g}, gradient norm {result.grad_norm.item():g}"
            event = Skipped(run=self.run.name, step=self.meter.steps, reason=reason)
            if self.world.leads:
                self.run.append(event)
            yield event

    def _common(self) -> dict[str, Any]:
        """The fields that progress and evaluations share."""
        return {
            "run": self.run.name,
            "step": self.meter.steps,
            "lr": self.state.lr(self.meter.steps - 1),
            "tokens_seen": self.meter.tokens_seen(),
            "tokens_per_s": self.meter.tokens_per_s,
            "elapsed_s": self.meter.elapsed_s(),
        }

    def _progress(self, result: StepResult) -> Progress:
        self.meter.measure()
        if self.clock is not None:
            self.clock.observe(*self.meter.measured)
        loss = float(result.loss.item())
        return Progress(train_loss=loss if np.isfinite(loss) else None, **self._common())

    def _evaluate(self, show: ShowWork) -> Iterator[Evaluated]:
        def advance(done: int, total: int) -> None:
            show(Scoring(run=self.run.name, step=self.meter.steps, final=False, done=done, total=total))

        measured = (
            self.evaluator(advance) if self.world.leads or self.config.compute.fsdp else None
        )  # with split weights every process computes a part
        figures = self._figures()
        event, self.judge.counters, self.record = self.world.lead(lambda: self._judged(measured, figures))
        if event.is_best:
            self.new_best = self.state.measured_weights()
        self.judge.evaluated_step = self.meter.steps
        yield event

    def _sample(self, should_stop: ShouldStop, show: ShowWork, *, evaluated: bool) -> Iterator[Event]:
        """A sample, if one is due; the first process writes it and the others wait."""
        step, elapsed_s = self.meter.steps, self.meter.elapsed_s()
        if not evaluated:
            if not self.sampler.is_due(step, elapsed_s, evaluated=False):
                return
            if self.result is not None and not self.meter.is_fresh():
                yield self._progress(self.result)

        def written() -> Sampled | None:
            if not self.sampler.is_due(step, elapsed_s, evaluated=evaluated):
                return None
            sample = self.sampler(self.record, step, show, lambda: should_stop() is not None)
            if sample is not None:
                self.run.append(sample)
            return sample

        if (sample := self.world.lead(written)) is not None:
            yield sample
        self.meter.restart()  # this is not part of the training speed

    def _judged(self, measured: Measured | None, figures: Figures) -> tuple[Evaluated, Counters, RunRecord]:
        """The event of an evaluation, and the changed counters and record. Only the first process decides."""
        if measured is None:
            raise ValueError("only the first process judges")
        best = self.judge.best(self.meter.steps, measured)
        event = Evaluated(
            train_loss=measured.train_loss,
            val_loss=measured.val_loss,
            nats_per_char=measured.nats_per_char,
            is_best=best is not None,
            patience_left=self.judge.counters.patience_left(self.config.eval),
            **self._common(),
            **figures.model_dump(),
        )
        self.run.append(event)
        losses = {"final_train_loss": measured.train_loss, "final_val_loss": measured.val_loss}
        return event, self.judge.counters, self.record.model_copy(update={**losses, **({"best": best} if best else {})})

    def _figures(self) -> Figures:
        """Gradient norm and routing of the last step; saved too, for a run that was killed between its last save and its end."""
        if self.figures_step != self.meter.steps and self.result is not None:
            self.figures, self.figures_step = self.state.figures(self.result), self.meter.steps
        return self.figures

    # ---- saving and ending

    def check_space(self) -> None:
        """Raise MiniGPTError before step 0 if the disk has no space for three generations of files: two kept, one being written."""
        weights = sum(p.numel() for p in self.state.model.parameters()) * 4
        generation = weights * (2 + bool(self.config.optim.ema)) + self.state.optimizer.state_bytes  # last and best, average, optimizer
        advice = "free some space, or give --keep-every a larger number" if self.keep.bytes_to_come else ""
        check_space(self.run.dir, 3 * generation + self.keep.bytes_to_come + checkpoints.SLACK, advice)

    def _save(self) -> Iterator[Saved]:
        """Save everything that the next step depends on."""
        last, resume = self.state.weights(), self.state.resume_tensors()  # every process takes part
        if self.judge.reference_nats is not None:
            resume = {**resume, "reference_nats": self.judge.reference_nats}
        self.saved_step, elapsed_s = self.meter.steps, self.meter.elapsed_s()
        state = {
            "step": self.meter.steps,
            "elapsed_s": elapsed_s,
            **self.judge.state(),
            "figures": self._figures().model_dump(),
            "recompiled": self.state.recompiled,
        }
        update = {"stop_step": self.meter.steps, "tokens_seen": self.meter.tokens_seen(), "elapsed_s": elapsed_s}
        record = self.record.model_copy(update=update)
        self.record = self.world.lead(
            lambda: checkpoints.save(self.run, record, last=last, resume=resume, resume_state=state, best=self.new_best, config=self.config)
        )
        self.new_best = None
        yield Saved(run=self.run.name, step=self.meter.steps)

    def _finish(self, reason: StopReason, should_stop: ShouldStop, show: ShowWork) -> Iterator[Event]:
        if reason.status != "finished":  # a signal, or numbers that are not finite
            self.record = self.record.model_copy(update={"status": reason.status, "stop_reason": reason})
            yield from self._save()
        else:
            if self.judge.evaluated_step != self.meter.steps:
                if not self.meter.is_fresh() and self.result is not None:
                    self._progress(self.result)  # measures the speed of the last steps
                yield from self._evaluate(show)
                yield from self._sample(should_stop, show, evaluated=True)
                if reason is StopReason.MAX_STEPS:
                    reason = self._reason() or reason  # that evaluation may have reached the target
            yield from self._save()  # still "running": if it is killed before the final score, it can be resumed for it
            self.record = self.world.lead(lambda: self._scored(reason, should_stop, show))
        yield replay.stopped(self.record, reason)
        if reason is StopReason.DIVERGED:
            self.world.lead(self._raise_diverged)

    def _scored(self, reason: StopReason, should_stop: ShouldStop, show: ShowWork) -> RunRecord:
        """The final record, written: why training stopped, and the best checkpoint's score on the whole validation split in float32.

        A signal ends the scoring: the run is finished all the same, with the score that training measured.
        """

        def advance(done: int, total: int) -> None:
            show(Scoring(run=self.run.name, step=self.meter.steps, final=True, done=done, total=total))
            if (asked := should_stop()) is not None and asked.signal_number is not None:
                raise Interrupted("the final score was ended", asked.signal_number)

        update: dict[str, Any] = {"status": reason.status, "stop_reason": reason}
        with suppress(Interrupted):
            if self.record.best is not None:
                update["best"] = self._final_score(self.record.best.step, advance)
        return self.run.write_record(self.record.model_copy(update=update))

    def _final_score(self, step: int, advance: Callable[[int, int], None]) -> Best:
        score = evaluate_run(self.run, device=lambda: str(self.device), dataset=self.dataset, fresh=True, advance=advance).score
        return Best(step=step, nats_per_token=score.nats_per_token, nats_per_char=score.nats_per_char, ci95=score.ci95, whole_split=True)

    def _raise_diverged(self) -> None:
        raise Diverged(
            f"training diverged: {_REFUSED_LIMIT} steps in a row had non-finite numbers; "
            f"run {self.run.name!r} keeps its best and last good weights; "
            "try a lower --lr or --muon-lr, or --grad-clip 1"
        )
