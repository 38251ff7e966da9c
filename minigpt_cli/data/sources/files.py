"""Files on a disk, and pipes, as inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from minigpt_cli.data.sources.spool import Spool
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.records import Fetched
from minigpt_cli.storage.atomic_io import explained


@dataclass(frozen=True)
class File:
    """A file on this machine."""

    label: str
    path: Path
    fetched: Fetched | None = None  # where it came from the network

    @property
    def size(self) -> int | None:
        return self.path.stat().st_size

    def open(self) -> BinaryIO:
        """The file. Raises UsageError if it cannot be read."""
        try:
            return self.path.open("rb")
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {self.label}: {getattr(error, 'strerror', None) or error}") from error

    def open_seekable(self) -> BinaryIO:
        """The file."""
        return self.open()


@dataclass(frozen=True)
class Stream:
    """Standard input or a pipe, read once and kept."""

    label: str
    path: Path  # without a suffix it is known by its content alone
    spool: Spool
    size: int | None = None

    def open(self) -> BinaryIO:
        """What came in. Raises MiniGPTError if there is no room for it."""
        with explained("keep a copy of what is read"):
            return self.spool.open()

    def open_seekable(self) -> BinaryIO:
        """What came in."""
        return self.open()
