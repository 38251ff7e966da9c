"""A folder that appears whole or not at all. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt_cli.errors import UsageError
from minigpt_cli.storage import atomic_io


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to fill; renamed to `out` at the end, removed if anything fails. Raises UsageError if `out` holds something."""
    out = Path(out)
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already: choose another --out, or remove it first")
    with atomic_io.explained("write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_io.sweep_abandoned(out.parent, f".{out.name}.")
        temporary = atomic_io.temporary_beside(out)
        temporary.mkdir()
        try:
            yield temporary
            for path in temporary.iterdir():
                _flush(path)
            atomic_io.sync_folder(temporary)
            if out.is_dir():
                out.rmdir()  # empty, as seen above; where it no longer is, this fails and nothing is lost
            temporary.rename(out)
            atomic_io.sync_folder(out.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | atomic_io.CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
