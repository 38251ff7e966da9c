"""Signals during training: the first one finishes the step and saves, a second one stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from minigpt_cli import interrupts
from minigpt_cli.display import console
from minigpt_cli.errors import Interrupted
from minigpt_cli.events import StopReason

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class StopSignals:
    """A `with` block in which `poll` returns requests by SIGINT, SIGTERM and SIGHUP. Before `wait_for_save` they end the work at once."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the received signal; a closed terminal counts as SIGTERM
        self._requested: StopReason | None = None
        self._waits_for_save = False
        self._announce: Callable[[str], None] = console.write_now
        self.promise = "Finishing the step and saving; press again to stop at once."  # said after a first signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup and background jobs ignore signals on purpose
                    self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def wait_for_save(self, announce: Callable[[str], None]) -> None:
        """From now on a first signal waits for the step and the save; `announce` prints a line about it."""
        self._waits_for_save, self._announce = True, announce

    def poll(self) -> StopReason | None:
        """The reason to stop, if a signal or `request` asked for it."""
        if self.number is None:
            return self._requested
        return StopReason.INTERRUPTED_KEYBOARD if self.number == signal.SIGINT else StopReason.TERMINATED

    def request(self, reason: StopReason) -> None:
        """Ask training to stop without a signal."""
        self._requested = reason

    def _received(self, number: int, frame: FrameType | None) -> None:
        if (not self._waits_for_save or self.number is not None) and interrupts.postpone(number, frame):
            return
        if closed_terminal := number == getattr(signal, "SIGHUP", None):
            _forget_terminal()
            number = signal.SIGTERM
        if not self._waits_for_save:
            raise Interrupted("interrupted before training started", number)
        if self.number is not None and not closed_terminal:
            raise Interrupted("stopped at once; the last save is intact", number)
        self.number = number
        if not closed_terminal:
            self._announce(self.promise)


def _forget_terminal() -> None:
    """Send output to the null device: writing to a closed terminal is an error."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            os.dup2(null, stream.fileno())
    os.close(null)
