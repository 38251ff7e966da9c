"""Folders that appear complete or not at all, and work whose progress can be watched."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from minigpt_cli.runstore.locks import alone_in, hold_folder
from minigpt_cli.storage.atomic_io import explained, leftovers, sweep_abandoned, sync_folder
from minigpt_cli.storage.downloads import Report

T = TypeVar("T")

UNFINISHED = ".building-"  # how the name of a folder in the making begins
_POLL_S = 0.1


@dataclass(frozen=True)
class Preparing:
    """How far a preparation is."""

    done_bytes: int
    total_bytes: int | None
    phase: str  # "downloading", "reading", "learning tokens from" or "encoding", of a text


@contextmanager
def atomic_folder(parent: Path, name: str = "", keep: str = "") -> Iterator[Path]:
    """A folder in `parent` to build in; what is left in it at the end is removed, and so is a `parent` that stays empty.

    With a `name` it has that name, unless another process builds there: then what a killed process built in it is found in it. An
    interruption leaves it if it holds a file `keep`.
    """
    with explained("make the folder"):
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        sweep_abandoned(parent, UNFINISHED, "")
        folder = parent / f"{UNFINISHED}{name}"
        if not name or not (release := hold_folder(folder)):
            folder, release = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent)), lambda: None
        folder.chmod(0o777 & ~_umask())
    kept = False
    try:
        yield folder
    except Exception:
        raise
    except BaseException:  # Ctrl-C, or the end of a generator
        kept = bool(keep) and (folder / keep).exists()
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
        release()
        with suppress(OSError):
            for empty in made:
                empty.rmdir()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def put_in_place(folder: Path, target: Path, is_good: Callable[[Path], bool]) -> None:
    """Rename the finished `folder` to `target`, in place of whatever is there unless that `is_good`.

    Processes that do so in one parent folder wait for each other, so that none removes what another has just finished.
    """
    with explained("write"), alone_in(target.parent):
        for temporary in leftovers(folder):  # of killed processes that built in it
            os.unlink(temporary)
        if target.exists():
            if is_good(target):
                return
            aside = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
            os.rename(target, aside / "old")
            shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, target)
        sync_folder(target.parent)


def watched(work: Callable[[Report], T], phase: str) -> Generator[Preparing, None, T]:
    """Do `work` in a thread and yield, now and then, what it last reported; returns its result or raises its error."""
    reports: list[Preparing] = []
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(lambda done, total: reports.append(Preparing(done, total, phase))))
        except BaseException as error:  # handed over whole to the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    busy = True
    while busy:
        thread.join(_POLL_S)
        busy = thread.is_alive()
        if reports:
            yield reports[-1]
            reports.clear()
    if errors:
        raise errors[0]
    return results[0]
