"""Counts steps, tokens and seconds of training over all sessions of a run, and measures the speed."""

from __future__ import annotations

import time

_EVERY_S = 0.5  # between two measurements of the speed; on an accelerator each makes the host wait for the device once


class Meter:
    """Measures the time of `steps`, which the loop counts."""

    def __init__(self, tokens_per_step: int) -> None:
        self.steps = 0
        self.tokens_per_s = 0.0  # at the last measurement
        self.measured = (0, 0.0)  # steps and seconds of that measurement
        self._tokens_per_step = tokens_per_step
        self._steps_before = self._tokens_before = 0  # of earlier sessions, which may have had another number of processes
        self._elapsed_before_s = 0.0
        self.start()

    def resume(self, steps: int, tokens_seen: int, elapsed_s: float) -> None:
        """Continue the counts of earlier sessions."""
        self.steps = self._steps_before = steps
        self._tokens_before, self._elapsed_before_s = tokens_seen, elapsed_s

    def start(self) -> None:
        """Start the clock of this session."""
        self._started_at = self._measured_at = time.perf_counter()
        self._measured_step = self.steps

    def restart(self) -> None:
        """Exclude the time since the last measurement from the speed."""
        self._measured_at, self._measured_step = time.perf_counter(), self.steps

    def measure(self) -> None:
        """Set `tokens_per_s` to the speed since the last measurement."""
        seconds = max(1e-9, time.perf_counter() - self._measured_at)
        self.measured = (self.steps - self._measured_step, seconds)
        self.tokens_per_s = self.measured[0] * self._tokens_per_step / seconds
        self.restart()

    def is_due(self) -> bool:
        """Whether it is time to measure again."""
        return time.perf_counter() - self._measured_at >= _EVERY_S

    def is_fresh(self) -> bool:
        """Whether the speed was measured at this step."""
        return self._measured_step == self.steps

    def elapsed_s(self) -> float:
        """Seconds of training in all sessions."""
        return self._elapsed_before_s + time.perf_counter() - self._started_at

    def tokens_seen(self) -> int:
        """Tokens trained on in all sessions."""
        return self._tokens_before + (self.steps - self._steps_before) * self._tokens_per_step
