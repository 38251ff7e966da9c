"""Threads that leave others their turn: how long they wait awake, and how one is started where a signal may end the work. No torch."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

_SPINS = "3000"


def share_cores() -> None:
    """Let OpenMP's threads sleep after a tenth of a millisecond of waiting for each other. Call it before torch loads.

    libgomp's own choice is to spin for milliseconds, on a core that another process could use; that process' threads then spin as well, and
    two trainings at once take ten times as long as one and more. Fewer spins cost one alone nothing (tests/benchmarks/side_by_side.py).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def start(thread: threading.Thread) -> None:
    """Start a thread. Signals that come meanwhile are answered right after: the error that one of them raises to end the work would be
    lost inside Thread.start, in an error of Python's own."""
    came: list[int] = []
    handlers: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():  # no other answers signals
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and callable(handler := signal.getsignal(number)):
                    handlers[number] = handler
                    signal.signal(number, lambda number, frame: came.append(number))
        thread.start()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)
