"""Plain text: a file, a pipe, a folder of files, or standard input.

Texts are given exactly as they are written: byte-order marks, NULs and every kind of line break are characters like others.
What is not UTF-8 is refused with the place of the first wrong byte.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from minigpt_cli import registry
from minigpt_cli.data.sources.contract import PlainText
from minigpt_cli.data.sources.spool import Spool
from minigpt_cli.errors import UsageError, unknown_name
from minigpt_cli.storage.atomic_io import explained
from minigpt_cli.storage.downloads import Report

BLOCK = 1 << 18  # bytes read at once


def open_path(path: Path, label: str = "") -> PlainText:
    """The text of a file, pipe or folder. Raises UsageError if there is none."""
    label = label or str(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.parent == Path() and not path.suffix:  # looks like a name
            raise unknown_name("file, folder or corpus", label, registry.CORPORA) from None
        raise UsageError(f"no file or folder {label}: give a text file, a folder, '-', or one of {', '.join(registry.CORPORA)}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {label!r}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        return Folder(label, path)
    if stat.S_ISFIFO(mode):
        return Stream(label, Spool(lambda: _open(path, label)))
    if not stat.S_ISREG(mode):
        raise UsageError(f"{label} is neither a text file nor a folder")
    return File(label, path)


def _open(path: Path, label: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {label}: {error.strerror}") from error


def _decoded(file: BinaryIO, label: str) -> Iterator[str]:
    """The UTF-8 text of an open file in pieces. Raises UsageError naming the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    read = 0
    while True:
        try:
            block = file.read(BLOCK)
        except OSError as error:
            raise UsageError(f"cannot read {label}: {error.strerror}") from error
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = read - pending + error.start
            hint = "it looks like UTF-16" if at == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else error.reason
            raise UsageError(f"{label} is not UTF-8 at byte {at} ({hint}): convert it, e.g. with iconv -t UTF-8") from error
        if text:
            yield text
        if not block:
            return
        read += len(block)


@dataclass(frozen=True)
class File(PlainText):
    """A text file."""

    label: str
    path: Path

    @property
    def n_bytes(self) -> int | None:
        return self.path.stat().st_size

    def chunks(self) -> Iterator[str]:
        """The file's text."""
        with _open(self.path, self.label) as file:
            yield from _decoded(file, self.label)


@dataclass(frozen=True)
class Folder(PlainText):
    """Every file in a folder and below that is not hidden, in the order of their paths.

    A line break is added between two files where the first ends without one.
    """

    label: str
    path: Path

    def files(self) -> list[Path]:
        """The files, sorted by path."""
        found = []
        for root, folders, names in os.walk(self.path):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            found += [path for name in names if not name.startswith(".") and (path := Path(root, name)).is_file()]
        if not found:
            raise UsageError(f"the folder {self.label} has no text files")
        return sorted(found, key=lambda path: path.relative_to(self.path).parts)

    @property
    def n_bytes(self) -> int | None:
        return sum(path.stat().st_size for path in self.files())

    def chunks(self) -> Iterator[str]:
        """The files' texts."""
        return _joined(File(str(path), path) for path in self.files())


@dataclass(frozen=True)
class Several(PlainText):
    """Texts one after the other, joined as the files of a folder are."""

    label: str
    sources: tuple[PlainText, ...]

    @property
    def n_bytes(self) -> int | None:
        sizes = [source.n_bytes for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def fetch(self, report: Report) -> None:
        """Download those that need it."""
        for source in self.sources:
            source.fetch(report)

    def chunks(self) -> Iterator[str]:
        """The sources' texts."""
        return _joined(self.sources)


def _joined(sources: Iterable[PlainText]) -> Iterator[str]:
    """Texts one after the other, with a line break between two where the first ends without one."""
    last = "\n"
    for source in sources:
        for chunk in source.chunks():
            if last != "\n":
                yield "\n"
            yield chunk
            last = "\n"  # inside a source nothing is added
        last = chunk[-1]


@dataclass(frozen=True)
class Stream(PlainText):
    """Standard input or a pipe, read once and kept."""

    label: str
    spool: Spool

    def fetch(self, report: Report) -> None:
        """Read all that comes."""
        with explained("keep a copy of what is read"):
            self.spool.open().close()

    def chunks(self) -> Iterator[str]:
        """What came in."""
        with explained("keep a copy of what is read"), self.spool.open() as file:
            yield from _decoded(file, "standard input" if self.label == "-" else self.label)
