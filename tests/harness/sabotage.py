"""Makes the Nth system call of the code under test that changes files fail, or kills the process in it."""

from __future__ import annotations

import errno
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt_cli.errors import Interrupted


class Killed(BaseException):
    """The process died here: nothing after it may have an effect."""


class Saboteur:
    """Fails the Nth write, fsync, rename, link or open of the code under test.

    mode "kill": the call dies and every later one too, so no clean-up code has an effect; a write dies after half of its bytes.
    mode "sigkill": the same for a process of its own, which really dies.
    mode "error": the one call raises `number` (a full disk), later ones work.
    mode "signal": a second Ctrl-C arrives in the one call, later ones work.
    mode "full": that call and all later writes and creations raise ENOSPC, as on a full disk; removing works.
    """

    CALLS = ("write", "fsync", "replace", "rename", "link", "open", "mkdir", "unlink", "rmdir", "ftruncate")
    GROWING = ("write", "fsync", "link", "open", "mkdir")

    def __init__(self, counter: mmap.mmap | None = None) -> None:
        self.count = 0
        self.log: list[str] = []
        self._counter = counter  # shared with the process that waits

    @contextmanager
    def strikes(self, nth: int, mode: str, number: int = errno.ENOSPC) -> Iterator[None]:
        """Within this block."""
        real = {name: getattr(os, name) for name in self.CALLS}
        self.count, self.log = 0, []
        try:
            self._replace_all(nth, mode, number)
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def stay(self, nth: int) -> None:
        """For the rest of this process: count every call, and be killed in the Nth (-1: never)."""
        self._replace_all(nth, "sigkill", 0)

    def _replace_all(self, nth: int, mode: str, number: int) -> None:
        for name in self.CALLS:
            setattr(os, name, self._sabotaged(name, getattr(os, name), nth, mode, number))

    def _sabotaged(self, name: str, real: Callable[..., Any], nth: int, mode: str, number: int) -> Callable[..., Any]:
        dies = mode in ("kill", "sigkill")

        def call(*args: Any, **kwargs: Any) -> Any:
            reads = name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)
            if (not dies and (name in ("unlink", "rmdir") or reads)) or (mode == "sigkill" and reads):
                return real(*args, **kwargs)
            self.count += 1
            if self._counter is not None:
                self._counter[:8] = self.count.to_bytes(8, "little")
            self.log.append(name)
            if nth < 0 or self.count < nth or (mode in ("error", "signal") and self.count > nth):
                return real(*args, **kwargs)
            if mode == "full" and name not in self.GROWING:
                return real(*args, **kwargs)
            if dies:
                if self.count == nth and name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                if mode == "sigkill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise Killed
            if mode == "signal":
                raise Interrupted("stopped at once; the last save is intact", 2)
            raise OSError(number, os.strerror(number), args[0] if isinstance(args[0], str | Path) else None)

        return call
