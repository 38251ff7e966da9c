"""One writer a run: a lock that the kernel frees when its process dies, however it dies. No torch.

The lock is on `.lock` itself (flock), never on its existence, so there is nothing to clean up after a crash.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from minigpt_cli import durable
from minigpt_cli.errors import MiniGPTError

PATIENCE_S = 0.5  # a reader's probe holds the lock for microseconds; a writer waits that out


def acquire(path: Path) -> Callable[[], None] | None:
    """Lock the file at `path`; how to release it, or None while another process holds it."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover
        return _acquire_without_flock(path)
    with durable.explained("lock"):
        fd = durable.open_regular(path, os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lambda: os.close(fd)  # closing frees the lock; the file stays, since unlinking it would race
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    return None
                time.sleep(0.01)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover
        release = _acquire_without_flock(path)
        if release is not None:
            release()
        return release is None
    try:
        fd = durable.open_regular(path)
    except (OSError, MiniGPTError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: believe the record
        return True
    finally:
        os.close(fd)
    return False


def _acquire_without_flock(path: Path) -> Callable[[], None] | None:  # pragma: no cover
    """The same where there is no flock (Windows)."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE_S)
    except filelock.Timeout:
        return None
    return lock.release
