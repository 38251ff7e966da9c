"""Zip archives that are documents (.epub, .docx): their members, with one-line errors and in bounded memory."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from minigpt_cli.data.sources.contract import DOCUMENT_LIMIT, Input, NotText, refuse_longer
from minigpt_cli.errors import UsageError

_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError, OverflowError)


class Archive:
    """The members of an archive; together they may hold as much as one document."""

    def __init__(self, label: str, archive: zipfile.ZipFile) -> None:
        self.label = label
        self._archive = archive
        self._size = 0

    def names(self) -> list[str]:
        """The members' names."""
        return self._archive.namelist()

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises UsageError if it is not there, or is too large; NotText if it is encrypted."""
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            raise UsageError(f"{self.label} is damaged: it names {name!r}, which is not in it; get it again") from None
        if info.flag_bits & 1:
            raise NotText(self.label, "encrypted", "save it without a password")
        with self._archive.open(info) as member:
            data = member.read(DOCUMENT_LIMIT + 1 - self._size)
        self._size += len(data)
        refuse_longer(self._size, self.label)
        return data


@contextmanager
def opened(source: Input) -> Iterator[Archive]:
    """The archive. Raises UsageError where it is damaged."""
    with source.open_seekable() as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield Archive(source.label, archive)
        except _BROKEN as error:
            raise UsageError(f"{source.label} is damaged or incomplete, not a readable zip archive: get it again") from error


def has_member(source: Input, name: str) -> bool:
    """Whether there is such a member in what begins like a zip archive."""
    with source.open_seekable() as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return name in archive.namelist()
        except _BROKEN:
            return False
