"""Compressed files (.gz, .bz2, .xz, .zst) of any other kind: read as what is in them.

What comes out is bounded: more than RATIO times what went in is no text but a file made to fill a disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, BinaryIO

from minigpt_cli.data.sources.contract import Input, NotText
from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.storage.atomic_io import explained

RATIO = 200  # times its compressed size; English text is made 3 to 6 times smaller
SMALL = 1 << 26  # bytes that may come out whatever went in


def _zstd() -> Any:
    try:
        from compression import zstd  # from Python 3.14 on
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise MissingExtra("reading .zst", "documents") from None
    return zstd


def _zst(file: BinaryIO) -> BinaryIO:
    opened: BinaryIO = _zstd().ZstdFile(file)
    return opened


def _gz(file: BinaryIO) -> BinaryIO:
    return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]


def _bz2(file: BinaryIO) -> BinaryIO:
    return bz2.BZ2File(file)  # type: ignore[return-value]


def _xz(file: BinaryIO) -> BinaryIO:
    return lzma.LZMAFile(file)  # type: ignore[return-value]


_FORMATS: dict[bytes, tuple[str, Callable[[BinaryIO], BinaryIO]]] = {
    b"\x1f\x8b": (".gz", _gz),
    b"BZh": (".bz2", _bz2),
    b"\xfd7zXZ\0": (".xz", _xz),
    b"\x28\xb5\x2f\xfd": (".zst", _zst),
}
_DAMAGE: tuple[type[Exception], ...] = (OSError, zlib.error, lzma.LZMAError, ValueError)  # what reading damaged data raises
SUFFIXES = tuple(suffix for suffix, _ in _FORMATS.values())


def decompressed(source: Input, head: bytes) -> Input | None:
    """What is in a compressed file that begins with `head`; None for another file. Raises NotText for what is compressed twice."""
    for magic, (_, opener) in _FORMATS.items():
        if head.startswith(magic) and (magic != b"BZh" or head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")):
            if isinstance(source, Decompressed):
                raise NotText(source.label, "compressed twice", "unpack it once")
            path = source.path.with_suffix("") if source.path.suffix.lower() in SUFFIXES else source.path
            return Decompressed(source.label, path, source, opener)
    return None


@dataclass(frozen=True)
class Decompressed:
    """What is in a compressed file."""

    label: str
    path: PurePath
    packed: Input
    opener: Callable[[BinaryIO], BinaryIO]
    size: int | None = None

    def open(self) -> BinaryIO:
        """The content, from its start. Raises UsageError where the file is damaged or holds too much."""
        return io.BufferedReader(_Bounded(self))  # type: ignore[type-var]

    def open_seekable(self) -> BinaryIO:
        """A copy of the content, in a temporary file without a name."""
        with explained("keep a copy of what is decompressed"), self.open() as content:
            copy = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
            try:
                while block := content.read(1 << 20):
                    copy.write(block)
            except BaseException:
                copy.close()
                raise
            copy.seek(0)
            return copy


class _Bounded(io.RawIOBase):
    """The content of a compressed file, read from its start to its end, with one-line errors."""

    def __init__(self, source: Decompressed) -> None:
        self._label = source.label
        self._packed = source.packed.open()
        self._packed_size = source.packed.size or self._packed.seek(0, os.SEEK_END)
        self._packed.seek(0)
        self._content = source.opener(self._packed)
        self._damage = (*_DAMAGE, _zstd().ZstdError) if source.opener is _zst else _DAMAGE
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        try:
            data = self._content.read(len(buffer))
        except EOFError:
            raise UsageError(f"{self._label} is incomplete: it ends in the middle of its compressed data; get it again") from None
        except self._damage as error:
            raise UsageError(f"{self._label} is damaged and cannot be decompressed ({error}): get it again") from error
        except MemoryError:
            raise UsageError(f"{self._label} needs too much memory to be decompressed: unpack it first") from None
        self._done += len(data)
        if self._done > SMALL and self._done > RATIO * self._packed_size:
            raise UsageError(f"{self._label} holds more than {RATIO} times its size, which no text does: unpack it first if it is one")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._content.close()
            self._packed.close()
        super().close()
