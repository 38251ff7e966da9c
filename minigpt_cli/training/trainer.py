"""From a resolved configuration to a trained run: a generator of events. Prints nothing.

The loop draws batch n, steps, and now and then evaluates, saves and asks whether to stop. Everything it decides was decided
before step 0; everything that the next step depends on is saved, so that a resumed run is the run that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from minigpt_cli import checkpoints
from minigpt_cli.checkpoints import ResumePoint
from minigpt_cli.config import RunConfig, parse_changes
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.errors import Diverged, RunDamaged
from minigpt_cli.evaluation.noise import improvement_noise
from minigpt_cli.events import Evaluated, Event, Resumed, Saved, Skipped, Started, Stopped, StopReason
from minigpt_cli.events import Progress as Beat
from minigpt_cli.runstore.records import Best, RunRecord, Session
from minigpt_cli.runstore.store import Run
from minigpt_cli.storage.atomic_io import one_line
from minigpt_cli.training import final_score, resuming
from minigpt_cli.training.device_batches import DeviceBatches
from minigpt_cli.training.distributed import World
from minigpt_cli.training.evaluator import Measured, Measuring
from minigpt_cli.training.memory import OutOfMemory, explained_out_of_memory, release_memory, smaller, smaller_notice
from minigpt_cli.training.state import StepResult, TrainingState
from minigpt_cli.training.stopping import Progress

_BEAT_S = 0.5  # between two heartbeats; on an accelerator each makes the host wait for the device once
_REFUSED_LIMIT = 10  # steps in a row with non-finite numbers after which a run counts as diverged
_TAIL_LIMIT = 2  # cosine-plateau trains at most this many times max_steps

ShouldStop = Callable[[], StopReason | None]
"""Why somebody outside asks training to stop after this step; None: nobody does."""


def fit(
    run: Run,
    config: RunConfig,
    dataset: Dataset,
    *,
    resume: ResumePoint | None = None,
    weights: Mapping[str, Tensor] | None = None,
    whole: Collection[str] = (),
    should_stop: ShouldStop = lambda: None,
    world: World | None = None,
    notices: list[str] | None = None,
) -> Iterator[Event]:
    """Train `run` and yield what happens, a `Stopped` last.

    `config` is resolved (planning.resolve); `weights` start a run from another's; with adapters
    (config.lora) they stay as they are, except for the tensors named in `whole`. Raises Diverged after the last good
    state is saved, and a one-line MiniGPTError when memory or disk run out.
    """
    world = world or World()
    while True:
        try:
            yield from _sitting(run, config, dataset, resume, weights, whole, should_stop, world, notices or [])
            return
        except OutOfMemory:
            if (halved := smaller(config, world.size)) is None:
                raise
        release_memory()
        config, resume, notices = halved, _begin_again(run, halved), [smaller_notice(halved)]


def _begin_again(run: Run, config: RunConfig) -> ResumePoint | None:
    """Where training goes on with a smaller batch: at the last save, or at the beginning if there is none."""
    if run.refresh().record.files:
        return checkpoints.load_resume(run)
    run.truncate_metrics(0)
    run.write_config(config)
    return None


def _sitting(
    run: Run,
    config: RunConfig,
    dataset: Dataset,
    resume: ResumePoint | None,
    weights: Mapping[str, Tensor] | None,
    whole: Collection[str],
    should_stop: ShouldStop,
    world: World,
    notices: list[str],
) -> Iterator[Event]:
    """Train until the end or until memory runs out."""
    device = world.device(config.compute.device)
    if resume is not None:
        config = resuming.with_changes(resume, config)
    with explained_out_of_memory(config):
        trainer = _Trainer(run, resume.record if resume else run.record, config, dataset, device, world, weights, whole)
        yield trainer.started(notices)
        world.lead(trainer.check_space)
        if resume is not None:
            yield trainer.continue_from(resume)
        yield from trainer.train(should_stop)


class _Figures(BaseModel):
    """What an evaluation says of the training step before it."""

    grad_norm: float | None = None
    expert_load: list[list[float]] | None = None  # share of tokens by layer and expert
    router_entropy: float | None = None  # nats


class _Trainer:
    """The state of the loop around `TrainingState`: counters, the clock, the record, the best weights since the last save."""

    def __init__(
        self,
        run: Run,
        record: RunRecord,
        config: RunConfig,
        dataset: Dataset,
        device: torch.device,
        world: World,
        weights: Mapping[str, Tensor] | None,
        whole: Collection[str],
    ) -> None:
        self.run, self.config, self.dataset, self.device, self.world = run, config, dataset, device, world
        self.state = TrainingState(config, dataset.tokenizer.vocab_size, device, world, weights, whole)
        self.batches = DeviceBatches(config, dataset, device, world)
        self.measuring = Measuring(config, dataset, self.state)
        self.progress = Progress()
        self.reference_nats: Tensor | None = None  # of the evaluation that the next must undercut; with --min-delta auto
        self.steps_done = 0
        self.elapsed_before_s = 0.0  # in earlier sessions
        self.steps_before = self.tokens_before = 0  # likewise
        self.started_at = self.beat_at = time.perf_counter()
        self.beat_step = self.evaluated_step = self.saved_step = -1
        self.speed = 0.0  # tokens per second since the last beat
        self.figures: dict[str, Any] | None = None  # of the last step: what an evaluation right after it reports
        self.figures_step = -1
        self.result: StepResult | None = None
        self.new_best: Mapping[str, Tensor] | None = None  # weights that the next save keeps as best
        self.tokens_per_step = config.optim.batch_size * config.optim.grad_accum * world.size * config.model.block_size
        self.record = resuming.described(record, config, dataset, self.state.model, device, world)

    # ---- the loop

    def train(self, should_stop: ShouldStop) -> Iterator[Event]:
        self.started_at = self.beat_at = time.perf_counter()
        self.beat_step = self.steps_done
        reason = self._reason()
        while reason is None:
            result = self.state.step(self.steps_done, self.batches)
            self.steps_done += 1
            self.result = result
            beat = self._beat(result) if self._beat_due() else None
            yield from self._skipped(result)
            if self._evaluation_due():
                yield from self._evaluate()
                self._lower_tail_rate()
                yield from self._save()
            elif beat is not None:
                yield beat
            if self.saved_step != self.steps_done and self._save_due():
                yield from self._save()
            reason = self._agreed_reason(should_stop)
        yield from self._finish(reason)

    def _reason(self) -> StopReason | None:
        """Why training ends here, if it does; by what is saved alone, so that a run killed after its last save ends as it would have."""
        if self._may_look() and self.state.refused_in_a_row >= _REFUSED_LIMIT:
            return StopReason.DIVERGED
        if self.steps_done and self.evaluated_step == self.steps_done:
            if self._in_tail() and self.progress.is_exhausted():
                return StopReason.PLATEAU
            if reason := self.progress.reason(self.config.eval):
                return reason
        return None if self._more_to_do() else StopReason.MAX_STEPS

    def _in_tail(self) -> bool:
        return self.config.optim.schedule == "cosine-plateau" and self.steps_done >= self.config.optim.max_steps

    def _lower_tail_rate(self) -> None:
        if self._in_tail():
            self.progress.tail()
            self.state.lr_scale = self.progress.tail_factor

    def _evaluation_due(self) -> bool:
        return self.steps_done % self.config.eval.eval_every == 0

    def _save_due(self) -> bool:
        return bool(self.config.eval.save_every) and self.steps_done % self.config.eval.save_every == 0

    def _beat_due(self) -> bool:
        return self._evaluation_due() or time.perf_counter() - self.beat_at >= _BEAT_S

    def _more_to_do(self) -> bool:
        limit = self.config.optim.max_steps
        return self.steps_done < limit or (self.config.optim.schedule == "cosine-plateau" and self.steps_done < limit * _TAIL_LIMIT)

    def _agreed_reason(self, should_stop: ShouldStop) -> StopReason | None:
        """Why training ends here, if it does: the strongest reason of any process, a signal and the clock among them."""
        limit = self.config.eval.time_limit
        reason = should_stop() or self._reason()
        if reason is None and limit and self.elapsed_s() >= limit:
            reason = StopReason.TIME_LIMIT
        strength = self.world.agree(reason.strength if reason else 0, self.device)
        return next((reason for reason in StopReason if reason.strength == strength), None)

    def elapsed_s(self) -> float:
        return self.elapsed_before_s + time.perf_counter() - self.started_at

    def tokens_seen(self) -> int:
        """In all sessions, each with its own number of processes."""
        return self.tokens_before + (self.steps_done - self.steps_before) * self.tokens_per_step

    # ---- events

    def started(self, notices: list[str]) -> Started:
        compute = self.config.compute
        return Started(
            run=self.run.name,
            step=0,
            arch=self.config.model.arch,
            n_params=self.record.n_params,
            n_active_params=self.record.n_active_params,
            vocab_size=self.record.vocab_size,
            train_tokens=len(self.dataset.train.tokens),
            val_tokens=len(self.dataset.val.tokens),
            max_steps=self.config.optim.max_steps,
            device=compute.device,
            precision=compute.precision,
            attention=compute.attention,
            compiled=compute.compile == "on",
            notices=notices,
        )

    def continue_from(self, resume: ResumePoint) -> Resumed:
        """Take over a save. Raises RunDamaged if it does not fit this configuration."""
        saved = resume.config if resume.record.world_size == self.world.size else resuming.divided_as(self.config, resume.config)
        changes = resuming.check_changes(saved, self.config, resume.resume_state["step"])
        reasons = [*changes, *resuming.inexact_reasons(resume.record.computed_by, self.record.computed_by)]
        try:
            reasons += self._take_over(resume)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise RunDamaged(
                f"the training state of run {self.run.name!r} does not fit its configuration: {one_line(str(error))}"
            ) from error
        history = [*resume.record.resume_exact_history, Session(step=self.steps_done, exact=not reasons, reasons=reasons)]
        self.record = self.record.model_copy(update={"resume_exact_history": history})
        self.record = self.world.lead(lambda: checkpoints.continue_from(self.run, resume, self.record, self.config))
        notices = [*resume.notices, *([f"not exact to the bit: {'; '.join(reasons)}"] if reasons else [])]
        return Resumed(run=self.run.name, step=self.steps_done, exact=not reasons, notices=notices)

    def _take_over(self, resume: ResumePoint) -> list[str]:
        """Go on from a save; why that is not exact, where the save itself says so."""
        state = resume.resume_state
        again = self.state.load_resume_tensors(resume.last, resume.resume)
        self.state.recompiled = state.get("recompiled") is True
        if resume.record.stop_reason is StopReason.DIVERGED:  # whoever resumes such a run wants it to try again
            self.state.refused_in_a_row.zero_()
        self.reference_nats = resume.resume.get("reference_nats")
        self.steps_done = self.saved_step = self.figures_step = state["step"]
        self.evaluated_step = int(state["evaluated_step"])
        self.elapsed_before_s = max(0.0, float(state["elapsed_s"]))
        self.steps_before, self.tokens_before = self.steps_done, resume.record.tokens_seen
        self.progress = Progress.from_state(state["progress"])
        if any((change.step, change.setting) == (self.steps_done, "max_steps") for change in parse_changes(self.config.resume_changes)):
            self.progress.leave_tail()
        self.figures = _Figures(**state["figures"]).model_dump()
        self.state.lr_scale = self.progress.tail_factor
        reasons = [f"random numbers ({', '.join(again)}) start again from the seed"] if again else []
        return reasons + (["torch.compile compiled other code as training went on"] if self.state.recompiled else [])

    def _may_look(self) -> bool:
        """Whether reading a number off the device costs nothing: always on the CPU, elsewhere only at a heartbeat."""
        return self.device.type == "cpu" or self.beat_step == self.steps_done

    def _skipped(self, result: StepResult) -> Iterator[Skipped]:
        """The event of a refused step; between the heartbeats of an accelerator only the last of them is seen."""
        if self._may_look() and result.refused.item():
            reason = f"loss {result.loss.item():g}, gradient norm {result.grad_norm.item():g}"
            event = Skipped(run=self.run.name, step=self.steps_done, reason=reason)
            if self.world.leads:
                self.run.append(event)
            yield event

    def _beat(self, result: StepResult) -> Beat:
        now = time.perf_counter()
        self.speed = (self.steps_done - self.beat_step) * self.tokens_per_step / max(1e-9, now - self.beat_at)
        self.beat_at, self.beat_step = now, self.steps_done
        loss = float(result.loss.item())
        return Beat(
            run=self.run.name,
            step=self.steps_done,
            train_loss=loss if np.isfinite(loss) else None,
            lr=self.state.lr(self.steps_done - 1),
            tokens_seen=self.tokens_seen(),
            tokens_per_s=self.speed,
            elapsed_s=self.elapsed_s(),
        )

    def _evaluate(self) -> Iterator[Evaluated]:
        measured = self.measuring() if self.world.leads or self.config.compute.fsdp else None  # of split weights all compute a part
        figures = self._figures()
        event, self.progress, self.record = self.world.lead(lambda: self._judged(measured, figures))
        if event.is_best:
            self.new_best = self.state.measured_weights()
        self.evaluated_step = self.steps_done
        yield event
        self.beat_at, self.beat_step = time.perf_counter(), self.steps_done  # evaluations are not part of the speed

    def _judged(self, measured: Measured | None, figures: dict[str, Any]) -> tuple[Evaluated, Progress, RunRecord]:
        """What an evaluation means for the run. The first process alone judges: others may have measured something else."""
        if measured is None:
            raise ValueError("nothing was measured")
        val_loss = float("nan") if measured.val_loss is None else measured.val_loss
        is_best = self.progress.observe(self.steps_done, val_loss, self._min_delta(measured))
        if self.config.eval.min_delta == "auto" and self.progress.without_improvement == 0:
            self.reference_nats = torch.from_numpy(measured.val_nats.astype(np.float32))
        update: dict[str, Any] = {"final_train_loss": measured.train_loss, "final_val_loss": measured.val_loss}
        if is_best:
            update["best"] = Best(
                step=self.steps_done,
                nats_per_token=val_loss,
                nats_per_char=measured.nats_per_char,
                whole_split=self.config.eval.eval_iters == 0,
            )
        event = Evaluated(
            run=self.run.name,
            step=self.steps_done,
            train_loss=measured.train_loss,
            val_loss=measured.val_loss,
            nats_per_char=measured.nats_per_char,
            lr=self.state.lr(self.steps_done - 1),
            tokens_seen=self.tokens_seen(),
            tokens_per_s=self.speed,
            elapsed_s=self.elapsed_s(),
            is_best=is_best,
            patience_left=self.progress.patience_left(self.config.eval),
            **figures,
        )
        self.run.append(event)
        return event, self.progress, self.record.model_copy(update=update)

    def _min_delta(self, measured: Measured) -> float:
        """What counts as improvement: as given, or what the noise of the difference from the reference evaluation leaves open."""
        wanted = self.config.eval.min_delta
        if wanted != "auto":
            return float(wanted)
        if measured.val_loss is None or self.reference_nats is None or len(self.reference_nats) != len(measured.val_nats):
            return 0.0
        return improvement_noise(self.reference_nats.numpy(), measured.val_nats)

    def _figures(self) -> dict[str, Any]:
        """Gradient norm and routing of the last step; they are saved too, for a run that is resumed where only its end is missing."""
        if self.figures_step != self.steps_done and self.result is not None:
            norm = float(self.result.grad_norm.item())
            load, entropy = self._routing()
            self.figures = {"grad_norm": norm if np.isfinite(norm) else None, "expert_load": load, "router_entropy": entropy}
            self.figures_step = self.steps_done
        return self.figures or {}

    def _routing(self) -> tuple[list[list[float]] | None, float | None]:
        """Load of every expert and the router's entropy in nats, of the last training step; None without experts."""
        routed = [block.moe for block in getattr(self.state.model, "blocks", []) if hasattr(block, "moe")]
        if not routed:
            return None, None
        entropy = torch.stack([moe.router_entropy() for moe in routed]).mean()
        return [[round(share, 4) for share in moe.expert_load().tolist()] for moe in routed], float(entropy)

    # ---- saving and ending

    def check_space(self) -> None:
        """Raise MiniGPTError before step 0 if the disk has no room for two generations of files and a third on its way."""
        weights = sum(p.numel() for p in self.state.model.parameters()) * 4
        generation = weights * (2 + bool(self.config.optim.ema)) + self.state.optimizer.state_bytes  # last and best, average, optimizer
        checkpoints.check_space(self.run.dir, 3 * generation + checkpoints.SLACK)

    def _save(self) -> Iterator[Saved]:
        """Put everything that the next step depends on safely on disk."""
        last, resume = self.state.weights(), self.state.resume_tensors()  # every process takes part in collecting them
        if self.reference_nats is not None:
            resume = {**resume, "reference_nats": self.reference_nats}
        self.saved_step = self.steps_done
        state = {
            "step": self.steps_done,
            "evaluated_step": self.evaluated_step,
            "elapsed_s": self.elapsed_s(),
            "progress": self.progress.state(),
            "figures": self._figures(),
            "recompiled": self.state.recompiled,
        }
        update = {"stop_step": self.steps_done, "tokens_seen": self.tokens_seen(), "elapsed_s": state["elapsed_s"]}
        record = self.record.model_copy(update=update)
        self.record = self.world.lead(
            lambda: checkpoints.save(self.run, record, last=last, resume=resume, resume_state=state, best=self.new_best)
        )
        self.new_best = None
        yield Saved(run=self.run.name, step=self.steps_done)

    def _finish(self, reason: StopReason) -> Iterator[Event]:
        ending = {"status": reason.status, "stop_reason": reason}
        if reason.status != "finished":  # a signal or broken numbers: save what there is and go
            self.record = self.record.model_copy(update=ending)
            yield from self._save()
        else:
            if self.evaluated_step != self.steps_done:
                yield from self._evaluate()
                if reason is StopReason.MAX_STEPS:
                    reason = self._reason() or reason  # that evaluation may have reached the target
                    ending["stop_reason"] = reason
            yield from self._save()  # still "running": killed before its final score, the run counts as crashed and can be resumed for it
            self.record = self.world.lead(lambda: self._scored(ending))
        best = self.record.best
        yield Stopped(
            run=self.run.name,
            step=self.steps_done,
            stop_reason=reason,
            best_step=best.step if best else None,
            best_val_loss=best.nats_per_token if best else None,
            best_nats_per_char=best.nats_per_char if best else None,
            elapsed_s=self.record.elapsed_s,
            tokens_seen=self.record.tokens_seen,
        )
        if reason is StopReason.DIVERGED:
            self.world.lead(self._raise_diverged)

    def _scored(self, ending: Mapping[str, Any]) -> RunRecord:
        """The record with the score of the best weights and how it all ended, written."""
        record = final_score.rescored(self.run, self.record, self.dataset, self.device).model_copy(update=ending)
        return self.run.write_record(record)

    def _raise_diverged(self) -> None:
        raise Diverged(
            f"training diverged: {_REFUSED_LIMIT} steps in a row had non-finite numbers; "
            f"run {self.run.name!r} keeps its best and last good weights; "
            "try a lower --lr or --muon-lr, or --grad-clip 1"
        )
