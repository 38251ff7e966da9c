"""Checkpoints over time (--keep-every): when one is kept, how many there will be, and what they need on the disk."""

from __future__ import annotations

from minigpt_cli import checkpoints
from minigpt_cli.config import EvalConfig, RunConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import KEPT_LIMIT, RunRecord
from minigpt_cli.storage.atomic_io import size
from minigpt_cli.training.state import TrainingState


class Keeper:
    """Keeps the weights of every N-th step, as they are evaluated."""

    def __init__(self, run: Run, config: RunConfig, record: RunRecord, state: TrainingState, *, timed: bool) -> None:
        """`record` is that of the step where training goes on; `timed`: a time budget decides how many steps there are. Raises UsageError
        for more checkpoints than a record can name."""
        self._run, self._state, self._timed, self._eval = run, state, timed, config.eval
        self._every, steps = config.eval.keep_every, config.optim.max_steps
        self._n_bytes = state.n_weight_bytes()
        to_come = max(0, steps // self._every - record.stop_step // self._every) if self._every else 0
        self.bytes_to_come = to_come * self._n_bytes
        self._total = len(record.kept) + to_come
        check_kept(self._every, steps, self._total)

    def notices(self) -> list[str]:
        """What will be kept, and its size on the disk; nothing where --keep-every is not used."""
        return kept_notices(self._eval, self._total, self._n_bytes, timed=self._timed)

    def __call__(self, record: RunRecord, step: int) -> RunRecord:
        """Keep the weights after `step` if it is one of them; the record that names them, which the next save writes. Every process takes
        part and gets the same record. Where there are more steps than planned, this ends when a record can name no more."""
        if not self._every or step % self._every or len(record.kept) >= KEPT_LIMIT:
            return record
        weights = self._state.measured_weights()
        return self._state.world.lead(lambda: checkpoints.keep(self._run, record, step, weights))


def check_kept(every: int, steps: int, total: int = 0) -> None:
    """Raise UsageError for more checkpoints than a record can name: `total`, or those of so many steps."""
    total = total or (steps // every if every else 0)
    if total > KEPT_LIMIT:
        advice = f"give --keep-every {-(-steps // KEPT_LIMIT)} or more"
        too_many = f"--keep-every {every} keeps {total:,} checkpoints in {steps:,} steps"
        raise UsageError(f"{too_many}, and a run has {KEPT_LIMIT:,} at most: {advice}")


def kept_notices(config: EvalConfig, total: int, n_bytes: int, *, timed: bool) -> list[str]:
    """What a run keeps: `total` checkpoints of `n_bytes` each at the planned number of steps. Nothing where --keep-every is not used; a
    warning where it keeps nothing."""
    if not config.keep_every:
        return []
    about = "about " if timed else "up to " if config.patience or config.target_loss or config.time_limit else ""
    if total == 0:
        return ["Warning: --keep-every is more than the number of steps: no checkpoint is kept"]
    decided = ", as many as fit the time budget" if timed else ""
    return [f"keeps {about}{total} checkpoint{'s' * (total != 1)} of {size(n_bytes)}: {size(total * n_bytes)}{decided}"]
