"""What can be read only once (standard input, a pipe) as a file that can be read as often as wanted."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO


class Spool:
    """A copy of a stream, made when it is first asked for, in a temporary file without a name: it ends with the process."""

    def __init__(self, open_stream: Callable[[], AbstractContextManager[BinaryIO]]) -> None:
        self._open_stream = open_stream
        self._fd: int | None = None

    def open(self) -> BinaryIO:
        """The copy, from its start; several may be open at once. Raises OSError."""
        if self._fd is None:
            fd, path = tempfile.mkstemp()
            weakref.finalize(self, os.close, fd)
            os.unlink(path)
            with self._open_stream() as stream, open(fd, "wb", closefd=False) as copy:
                shutil.copyfileobj(stream, copy)
            self._fd = fd
        return io.BufferedReader(_View(self, self._fd))  # type: ignore[type-var]


class _View(io.RawIOBase):
    """The copy of a spool, which lives as long as this, with a position of its own."""

    def __init__(self, spool: Spool, fd: int) -> None:
        self._spool, self._fd, self._at = spool, fd, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = os.pread(self._fd, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
