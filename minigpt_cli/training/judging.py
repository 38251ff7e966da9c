"""What an evaluation means for a run: whether it is the best, and whether training goes on after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minigpt_cli.config import RunConfig
from minigpt_cli.evaluation.noise import improvement_noise
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.records import Best
from minigpt_cli.training.evaluator import Measured
from minigpt_cli.training.stopping import Counters

_TAIL_LIMIT = 2  # cosine-plateau trains at most this many times max_steps


class Judge:
    """Everything that decides about best and end, all of it saved with the run."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.counters = Counters()
        self.evaluated_step = -1
        self.reference_nats: Tensor | None = None  # of the evaluation that the next must undercut; with --min-delta auto

    def state(self) -> dict[str, Any]:
        """What a save holds besides `reference_nats`, as JSON."""
        return {"evaluated_step": self.evaluated_step, "progress": self.counters.state()}

    def resume(self, state: Mapping[str, Any], reference_nats: Tensor | None, *, new_end: bool) -> None:
        """Go on from what `state` gave; `new_end`: the run has another number of steps now. Raises KeyError, TypeError or ValueError for
        anything else."""
        self.reference_nats = reference_nats
        self.evaluated_step = int(state["evaluated_step"])
        self.counters = Counters.from_state(state["progress"])
        if new_end:
            self.counters.leave_tail()

    def best(self, step: int, measured: Measured) -> Best | None:
        """The new best of the run, if this evaluation is it. Counts the evaluation."""
        val_loss = float("nan") if measured.val_loss is None else measured.val_loss
        is_best = self.counters.observe(step, val_loss, self._min_delta(measured))
        if self.config.eval.min_delta == "auto" and self.counters.without_improvement == 0:
            self.reference_nats = torch.from_numpy(measured.val_nats.astype(np.float32))
        whole = self.config.eval.eval_iters == 0
        return Best(step=step, nats_per_token=val_loss, nats_per_char=measured.nats_per_char, whole_split=whole) if is_best else None

    def _min_delta(self, measured: Measured) -> float:
        """What counts as improvement: as given, or what the noise of the difference from the reference evaluation leaves open."""
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
            self.counters.tail()
        return self.counters.tail_factor

    def _in_tail(self, step: int) -> bool:
        return self.config.optim.schedule == "cosine-plateau" and step >= self.config.optim.max_steps
