"""When a run ends, and which evaluation was its best. Plain counters, so that a resumed run continues the very same count."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from minigpt_cli.config import EvalConfig
from minigpt_cli.events import StopReason

_TAIL_EVALUATIONS = 2  # without improvement, before the plateau's rate is lowered
_TAIL_REDUCTIONS = 3  # without improvement, before the plateau ends the run


@dataclass
class Counters:
    """Where validation stands: the best so far, and how many evaluations ago it was."""

    best_step: int | None = None
    best_loss: float = math.inf  # nats per token
    reference: float = math.inf  # the loss that the next improvement must undercut by min_delta
    without_improvement: int = 0  # evaluations
    tail_reductions: int = 0  # times that the plateau's rate was lowered since it last helped
    tail_factor: float = 1.0

    def observe(self, step: int, loss: float, min_delta: float) -> bool:
        """Count one evaluation; True if it is the best so far. A loss that is not finite never is."""
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
        """Evaluations without improvement that may still come; None: no early stopping."""
        return max(0, config.patience - self.without_improvement) if config.patience else None

    def reason(self, config: EvalConfig) -> StopReason | None:
        """Why training should end after this evaluation, if it should."""
        if config.target_loss and self.best_loss <= config.target_loss:
            return StopReason.TARGET_LOSS
        if config.patience and self.without_improvement >= config.patience:
            return StopReason.EARLY_STOPPING
        return None

    def is_exhausted(self) -> bool:
        """Whether lowering the plateau's rate has stopped helping."""
        return self.tail_reductions >= _TAIL_REDUCTIONS

    def tail(self) -> bool:
        """One evaluation past the end of `cosine-plateau`: lower the rate when it no longer helps; True when nothing does."""
        if self.without_improvement == 0:
            self.tail_reductions = 0
        elif self.without_improvement % _TAIL_EVALUATIONS == 0:
            self.tail_factor *= 0.5
            self.tail_reductions += 1
        return self.is_exhausted()

    def leave_tail(self) -> None:
        """Forget the plateau: the run has another end."""
        self.tail_reductions, self.tail_factor = 0, 1.0

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
