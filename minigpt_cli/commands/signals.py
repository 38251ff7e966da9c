"""What a signal means while a model trains: the first asks to finish the step and save, a second stops at once."""

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
    """A `with` in which SIGINT, SIGTERM and SIGHUP are requests that `poll` answers. Before `wait_for_save` they end the work at once."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal that came; a lost terminal counts as SIGTERM
        self._requested: StopReason | None = None
        self._patient = False
        self._announce: Callable[[str], None] = console.write_now
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup, and a shell's background, mean it
                    self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def wait_for_save(self, announce: Callable[[str], None]) -> None:
        """From now on a first signal waits for the step and the save, and `announce` tells so."""
        self._patient, self._announce = True, announce

    def poll(self) -> StopReason | None:
        """Why training should stop, if a signal or `request` asked for it."""
        if self.number is None:
            return self._requested
        return StopReason.INTERRUPTED_KEYBOARD if self.number == signal.SIGINT else StopReason.TERMINATED

    def request(self, reason: StopReason) -> None:
        """Ask to stop although no signal came."""
        self._requested = reason

    def _received(self, number: int, frame: FrameType | None) -> None:
        if (not self._patient or self.number is not None) and interrupts.postpone(number, frame):
            return
        if lost_terminal := number == getattr(signal, "SIGHUP", None):
            _forget_terminal()
            number = signal.SIGTERM
        if not self._patient:
            raise Interrupted("interrupted before training began", number)
        if self.number is not None and not lost_terminal:
            raise Interrupted("stopped at once; the last save is intact", number)
        self.number = number
        if not lost_terminal:
            self._announce("Finishing the step and saving; once more to stop at once.")


def _forget_terminal() -> None:
    """Writing to a terminal that is gone fails: write to nowhere instead."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
