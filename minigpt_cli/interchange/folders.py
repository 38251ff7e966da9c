"""The folder of an export, which appears complete or not at all. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt_cli.data.atomic_folder import atomic_folder
from minigpt_cli.errors import UsageError
from minigpt_cli.storage import atomic_io


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; renamed to `out` at the end, removed if anything fails. Raises UsageError if `out` is not empty."""
    out = Path(out)
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already: choose another --out, or remove it first")
    with atomic_io.explained("write"), atomic_folder(out.parent) as folder:
        yield folder
        for path in folder.iterdir():
            _flush(path)
        atomic_io.sync_folder(folder)
        if out.is_dir():
            out.rmdir()  # it was empty above; if it is not empty now, this fails and nothing is lost
        folder.rename(out)
        atomic_io.sync_folder(out.parent)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | atomic_io.CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
