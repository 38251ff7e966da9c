"""How far a run is and how fast: steps, tokens and seconds of training, over all its sessions."""

from __future__ import annotations

import time

_EVERY_S = 0.5  # between two measurements of the speed; on an accelerator each makes the host wait for the device once


class Meter:
    """Counts `steps`, which the loop sets, and the time that they take."""

    def __init__(self, tokens_per_step: int) -> None:
        self.steps = 0
        self.tokens_per_s = 0.0  # when it was last measured
        self._tokens_per_step = tokens_per_step
        self._steps_before = self._tokens_before = 0  # in earlier sessions, which may have had other numbers of processes
        self._elapsed_before_s = 0.0
        self.start()

    def resume(self, steps: int, tokens_seen: int, elapsed_s: float) -> None:
        """Go on after earlier sessions."""
        self.steps = self._steps_before = steps
        self._tokens_before, self._elapsed_before_s = tokens_seen, elapsed_s

    def start(self) -> None:
        """Training begins now."""
        self._started_at = self._measured_at = time.perf_counter()
        self._measured_step = self.steps

    def restart(self) -> None:
        """What was done since the last measurement is no part of the speed."""
        self._measured_at, self._measured_step = time.perf_counter(), self.steps

    def measure(self) -> None:
        """Set `tokens_per_s` to the speed since the last measurement."""
        seconds = max(1e-9, time.perf_counter() - self._measured_at)
        self.tokens_per_s = (self.steps - self._measured_step) * self._tokens_per_step / seconds
        self.restart()

    def is_due(self) -> bool:
        """Whether it is time to measure again."""
        return time.perf_counter() - self._measured_at >= _EVERY_S

    def is_fresh(self) -> bool:
        """Whether the speed was measured at this very step."""
        return self._measured_step == self.steps

    def elapsed_s(self) -> float:
        """Seconds of training in all sessions."""
        return self._elapsed_before_s + time.perf_counter() - self._started_at

    def tokens_seen(self) -> int:
        """In all sessions."""
        return self._tokens_before + (self.steps - self._steps_before) * self._tokens_per_step
