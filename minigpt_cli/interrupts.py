"""What a signal does to this process, from its first line to its last: it ends the work in order, and never with a traceback.

A signal handler runs between any two instructions of Python. The error that it raises to end the work is lost or changed where a library
is imported or a thread is started, and in a finalizer Python prints it and goes on: there the signal is sent again a moment later.
"""

from __future__ import annotations

import _thread
import gc
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from minigpt_cli.errors import Interrupted

_RETRY_S = 0.02
_IMPORT = "<frozen importlib._bootstrap>"  # the file of Python's own functions that import a module
_postponed: set[int] = set()  # signals that are about to be sent again


def listen() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt where that ends the work. Call it before anything large is imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and a shell's background ignore it
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unraisable


def leave(code: int) -> NoReturn:
    """End the process with this exit code; Ctrl-C comes too late to change it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "RANK" in os.environ:  # under torchrun there are threads to be ended in order
        sys.exit(code)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # a thread may be in the middle of work that crashes when Python ends around it
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    gc.freeze()  # nobody needs the memory collected that the system takes back anyway: a fifth of a second after torch
    sys.exit(code)


def postpone(number: int, frame: FrameType | None) -> bool:
    """Whether an error raised in `frame` would be lost there; if so, the signal is sent again a moment later."""
    while frame is not None and not _passes_on(frame):
        if frame.f_code.co_filename == _IMPORT or frame.f_code is threading.Thread.start.__code__:
            return _send_again(number)
        frame = frame.f_back
    return False


def _passes_on(frame: FrameType) -> bool:
    """Whether this is a function of ours: it passes errors on, and where it is imported does not matter any more."""
    return frame.f_code.co_name != "<module>" and frame.f_globals.get("__name__", "").startswith("minigpt_cli")


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not postpone(number, frame):
        raise KeyboardInterrupt


def _unraisable(lost: Any) -> None:
    """Python's hook for an error that nobody can catch, in a finalizer or a callback."""
    if issubclass(lost.exc_type, KeyboardInterrupt | Interrupted):
        _send_again(getattr(lost.exc_value, "signal_number", int(signal.SIGINT)))
    else:
        sys.__unraisablehook__(lost)


def _send_again(number: int) -> bool:
    """Send this process a signal in a moment; whether that can be done."""
    if number not in _postponed:
        try:
            _thread.start_new_thread(_send_soon, (number,))
        except RuntimeError:  # no room for a thread
            return False
        _postponed.add(number)  # before the thread has slept
    return True


def _send_soon(number: int) -> None:
    time.sleep(_RETRY_S)
    _postponed.discard(number)
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)  # the main thread hears it even where it waits
    else:  # pragma: no cover: Windows
        signal.raise_signal(number)
