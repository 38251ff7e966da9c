"""One writer for each run: a lock that the kernel frees when its process ends, also after a crash. No torch.

The file `.lock` is locked (flock); that it exists means nothing, so there is nothing to clean up after a crash.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minigpt_cli.errors import MiniGPTError, RunLocked
from minigpt_cli.storage import atomic_io

try:
    import fcntl
except ImportError:  # pragma: no cover: Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE_S = 0.5  # a reader's probe holds the lock for microseconds; a writer waits that out
_held: set[str] = set()  # paths that this process has locked


def acquire(path: Path, patience_s: float = PATIENCE_S) -> Callable[[], None] | None:
    """Lock the file at `path` and return the function that releases it; None while another process holds the lock."""
    free = _acquire(path, patience_s)
    if free is None:
        return None
    _held.add(name := os.path.abspath(path))

    def release() -> None:
        _held.discard(name)
        free()

    return release


@contextmanager
def holding(path: Path, refusal: str, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock during the block. Raises RunLocked with the message `refusal` while another process holds it."""
    release = acquire(path, patience_s)
    if release is None:
        raise RunLocked(refusal)
    try:
        yield
    finally:
        release()


def is_ours(path: Path) -> bool:
    """Whether this process holds the lock."""
    return os.path.abspath(path) in _held


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder during the block, so that no other process takes a name in it meanwhile; it leaves no file."""
    if fcntl is None:  # pragma: no cover: Windows
        yield
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def hold_folder(folder: Path) -> Callable[[], None] | None:
    """Make a folder unless it is there, and lock it while this process lives; returns what frees it. None where another process holds it,
    or folders cannot be locked. It leaves no file."""
    if fcntl is None:  # pragma: no cover: Windows
        return None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | atomic_io.NOFOLLOW | atomic_io.CLOEXEC)
    except OSError:  # another process has just renamed it; where no folder can be made, the caller's own attempt says why
        return None
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.lstat(folder)):  # else another process has finished it meanwhile
            return lambda: os.close(fd)
    os.close(fd)
    return None


def _acquire(path: Path, patience_s: float) -> Callable[[], None] | None:
    if fcntl is None:  # pragma: no cover: Windows
        return _acquire_without_flock(path, patience_s)
    deadline = time.monotonic() + patience_s
    with atomic_io.explained("lock"):
        while True:
            fd = None
            try:
                fd = atomic_io.open_regular(path, os.O_RDWR | os.O_CREAT)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.lstat(path)):  # else its folder was renamed or removed: this locks another run
                    held, fd = fd, None
                    return lambda: os.close(held)  # closing frees the lock; the file stays, since unlinking it would race
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return None
            except FileNotFoundError:  # the folder was renamed; another may get its name at once
                if time.monotonic() > deadline:
                    raise
            finally:
                if fd is not None:
                    os.close(fd)
            time.sleep(0.01)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if fcntl is None:  # pragma: no cover: Windows
        release = _acquire_without_flock(path)
        if release is not None:
            release()
        return release is None
    try:
        fd = atomic_io.open_regular(path)
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


def _acquire_without_flock(path: Path, patience_s: float = PATIENCE_S) -> Callable[[], None] | None:  # pragma: no cover
    """The same where there is no flock (Windows)."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=patience_s)
    except filelock.Timeout:
        return None
    return lock.release
