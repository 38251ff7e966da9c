"""Folders that appear complete or not at all, and work whose progress can be watched."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from minigpt_cli.downloads import Report
from minigpt_cli.durable import explained, sync_folder

T = TypeVar("T")

UNFINISHED = ".building-"  # how the name of a folder in the making begins
_ABANDONED_S = 24 * 3600.0  # an unfinished folder that old was left by a killed process
_POLL_S = 0.1


@contextmanager
def workshop(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` to build in; what is left of it at the end is removed, and so is a `parent` that was made for nothing."""
    with explained("make the folder"):
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
        folder.chmod(0o777 & ~_umask())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            for empty in made:
                empty.rmdir()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sweep(parent: Path) -> None:
    """Remove what killed processes left in `parent` long ago."""
    with suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(UNFINISHED) and time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_S:
                shutil.rmtree(entry.path, ignore_errors=True)


def put_in_place(folder: Path, target: Path) -> None:
    """Rename the finished `folder` to `target`; what stood there before is moved aside and removed with the workshop."""
    with explained("write"):
        while True:
            try:
                os.rename(folder, target)  # takes the place of nothing or, on POSIX, of an empty folder
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or not target.is_dir():
                    raise
            aside = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
            try:
                with suppress(FileNotFoundError):  # another process was quicker
                    os.rename(target, aside / "old")
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        sync_folder(target.parent)


def watched(work: Callable[[Report], T]) -> Generator[tuple[int, int | None], None, T]:
    """Do `work` in a thread and yield, now and then, what it last reported; returns its result or raises its error."""
    last: list[tuple[int, int | None]] = [(0, None)]
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(lambda done, total: last.__setitem__(0, (done, total))))
        except BaseException as error:  # handed over whole to the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        yield last[0]
        thread.join(_POLL_S)
    if errors:
        raise errors[0]
    return results[0]
