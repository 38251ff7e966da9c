"""Starting a thread where a signal may end the work at any moment. No torch."""

from __future__ import annotations

import signal
import threading
from typing import Any


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
