"""What an evaluation means for a run: whether it is the best so far, and whether training goes on after it.

Everything here is saved with the run, so that a resumed run decides as if it had not been interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from minigpt_cli.config import EvalConfig, RunConfig
from minigpt_cli.evaluation.statistics import improvement_noise
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.records import Best
from minigpt_cli.training.evaluator import Measured

_TAIL_LIMIT = 2  # cosine-plateau trains at most this many times max_steps
_TAIL_EVALUATIONS = 2  # without improvement, before the plateau's rate is lowered
_TAIL_REDUCTIONS = 3  # without improvement, before the plateau ends the run


@dataclass
class Counters:
    """The best validation loss so far, and how many evaluations ago it improved."""

    best_step: int | None = None
    best_loss: float = math.inf  # nats per token
    reference: float = math.inf  # the loss that the next improvement must undercut by min_delta
    without_improvement: int = 0  # evaluations
    tail_reductions: int = 0  # times that the plateau's rate was lowered since the last improvement
    tail_factor: float = 1.0

    def observe(self, step: int, loss: float, min_delta: float) -> bool:
        """Count one evaluation; True if it is the best so far. A loss that is not finite is never the best."""
        improved = math.isfinite(loss) and loss < self.reference - min_delta
        if improved:
            self.reference, self.without_improvement = loss, 0
        else:
            self.without_improvement += 1
        if math.isfinite(loss) and loss < self.best_loss:
            self.best_step, self.best_loss = step, loss
            return True
        return False

    def patience_left(self, config: EvalConfig) -> int | None:
        """Further evaluations without improvement before training stops; None: no early stopping."""
        return max(0, config.patience - self.without_improvement) if config.patience else None

    def reason(self, config: EvalConfig) -> StopReason | None:
        """Why training should end after this evaluation, if it should."""
        if config.target_loss and self.best_loss <= config.target_loss:
            return StopReason.TARGET_LOSS
        if config.patience and self.without_improvement >= config.patience:
            return StopReason.EARLY_STOPPING
        return None

    def is_exhausted(self) -> bool:
        """Whether lowering the plateau's rate no longer helps."""
        return self.tail_reductions >= _TAIL_REDUCTIONS

    def lower_rate(self) -> None:
        """After an evaluation past the end of `cosine-plateau`: lower the rate if the loss no longer improves."""
        if self.without_improvement == 0:
            self.tail_reductions = 0
        elif self.without_improvement % _TAIL_EVALUATIONS == 0:
            self.tail_factor *= 0.5
            self.tail_reductions += 1

    def state(self) -> dict[str, Any]:
        """As JSON: infinities are None."""
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Counters:
        """The counters that `state` gave. Raises ValueError for anything else."""
        known = {name: math.inf if value is None and name in ("best_loss", "reference") else value for name, value in state.items()}
        if unknown := known.keys() - cls.__dataclass_fields__.keys():
            raise ValueError(f"no counter is called {min(unknown)}")
        return TypeAdapter(cls).validate_python(known)


class Judge:
    """Decides which evaluation is the best and when training ends."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.counters = Counters()
        self.evaluated_step = -1
        self.reference_nats: Tensor | None = None  # of the evaluation that the next must undercut; with --min-delta auto

    def state(self) -> dict[str, Any]:
        """What a save holds besides `reference_nats`, as JSON."""
        return {"evaluated_step": self.evaluated_step, "progress": self.counters.state()}

    def resume(self, state: Mapping[str, Any], reference_nats: Tensor | None, *, new_end: bool) -> None:
        """Continue from what `state` gave; `new_end`: the number of steps has changed. Raises KeyError, TypeError or ValueError for
        anything else."""
        self.reference_nats = reference_nats
        self.evaluated_step = int(state["evaluated_step"])
        self.counters = Counters.from_state(state["progress"])
        if new_end:
            self.counters.tail_reductions, self.counters.tail_factor = 0, 1.0

    def best(self, step: int, measured: Measured) -> Best | None:
        """The new best of the run, if this evaluation is it. Counts the evaluation."""
        val_loss = float("nan") if measured.val_loss is None else measured.val_loss
        is_best = self.counters.observe(step, val_loss, self._min_delta(measured))
        if self.config.eval.min_delta == "auto" and self.counters.without_improvement == 0:
            self.reference_nats = torch.from_numpy(measured.val_nats.astype(np.float32))
        whole = self.config.eval.eval_iters == 0
        return Best(step=step, nats_per_token=val_loss, nats_per_char=measured.nats_per_char, whole_split=whole) if is_best else None

    def _min_delta(self, measured: Measured) -> float:
        """How much lower the loss must be to count as improvement: as configured, or the noise of the difference from the reference."""
        wanted = self.config.eval.min_delta
        if wanted != "auto":
            return float(wanted)
        if measured.val_loss is None or self.reference_nats is None or len(self.reference_nats) != len(measured.val_nats):
            return 0.0
        return improvement_noise(self.reference_nats.numpy(), measured.val_nats)

    def reason(self, step: int) -> StopReason | None:
        """Why training ends at this step, if it does."""
        if step and self.evaluated_step == step:
            if self._in_tail(step) and self.counters.is_exhausted():
                return StopReason.PLATEAU
            if reason := self.counters.reason(self.config.eval):
                return reason
        optim = self.config.optim
        limit = optim.max_steps * (_TAIL_LIMIT if optim.schedule == "cosine-plateau" else 1)
        return None if step < limit else StopReason.MAX_STEPS

    def tail_factor(self, step: int) -> float:
        """What the learning rate is multiplied by after the evaluation at this step: less than 1 in the tail of cosine-plateau."""
        if self._in_tail(step):
            self.counters.lower_rate()
        return self.counters.tail_factor

    def _in_tail(self, step: int) -> bool:
        return self.config.optim.schedule == "cosine-plateau" and step >= self.config.optim.max_steps
