"""What every kind of source promises: documents, which are pieces of text, in one order, as often as they are asked for.

A document of plain text is learned whole. Of a conversation the answers are learned and the rest is read: its pieces say which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, Protocol, TypeAlias

from minigpt_cli.config import DataConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.records import Fetched
from minigpt_cli.storage.downloads import Report

if TYPE_CHECKING:
    from pathlib import Path, PurePath

SplitBy: TypeAlias = Literal["character", "conversation"]
SplitName: TypeAlias = Literal["train", "val", "test"]
DOCUMENT_LIMIT = 1 << 26  # bytes, or characters, of a document that a reader must hold in memory


@dataclass(slots=True)
class Piece:
    """A part of a document's text."""

    text: str
    learned: bool = True
    _utf8: bytes | None = field(default=None, compare=False, repr=False)

    @property
    def utf8(self) -> bytes:
        """The text in UTF-8, encoded once: it is hashed several times, and often comes from UTF-8."""
        if self._utf8 is None:
            self._utf8 = self.text.encode("utf-8")
        return self._utf8

    def part(self, begin: int, end: int) -> Piece:
        """Its characters from `begin` to `end`, as far as it has them."""
        return self if begin <= 0 and end >= len(self.text) else Piece(self.text[max(0, begin) : end], self.learned)


def with_text(pieces: Iterable[Piece]) -> Iterable[Piece] | None:
    """The pieces of a document; None if none has any text."""
    if isinstance(pieces, list):
        return pieces if (pieces and pieces[0].text) or any(piece.text for piece in pieces) else None
    rest = iter(pieces)
    first = next((piece for piece in rest if piece.text), None)
    return None if first is None else chain([first], rest)


class Document(NamedTuple):
    """A text by itself: its name says where it stands, as in `letters.jsonl:12`; its pieces can be read once, before the next document."""

    name: str
    pieces: Iterable[Piece]
    split: SplitName | None = None  # where its source says which split it belongs to
    file: str = ""  # the file that it is in
    kind: str = ""  # what this file is
    encoding: str = ""  # what it is read in; empty for UTF-8, and where the kind decides


class Source(Protocol):
    """Documents from one place. `Files` are texts that people have, `PlainText` is what else gives one text."""

    @property
    def label(self) -> str: ...  # what the person typed

    @property
    def n_bytes(self) -> int | None: ...  # for a progress bar

    @property
    def marks(self) -> tuple[str, ...]: ...  # tokens that a tokenizer gets for this kind of source; each is a piece of its own

    @property
    def on_disk(self) -> Sequence[Path] | None: ...  # all that is read; None where it is not from files, or not as they are

    @property
    def split_by(self) -> SplitBy: ...  # where splits may be cut: in one long document, or between many

    @property
    def notices(self) -> list[str]: ...  # what was left out: of the last reading of documents(), when it has ended

    @property
    def skipped(self) -> dict[str, int]: ...  # files that were left out then, by what they are

    @property
    def fetched(self) -> list[Fetched]: ...  # what came from the network

    def fetch(self, report: Report) -> None:
        """Bring the text onto this machine, if it is not here."""

    def documents(self) -> Iterator[Document]:
        """The documents, in order, as often as they are asked for. Raises UsageError where one cannot be read."""


class PlainText(ABC):
    """A source of one document, which is learned whole: what texts of every origin have in common."""

    label: str
    marks: tuple[str, ...] = ()
    split_by: SplitBy = "character"

    @property
    def notices(self) -> list[str]:
        """Nothing is left out."""
        return []

    @property
    def skipped(self) -> dict[str, int]:
        """Nothing is left out."""
        return {}

    @property
    def fetched(self) -> list[Fetched]:
        """Nothing, or a file that is known by its name."""
        return []

    @property
    def on_disk(self) -> None:
        """Not known."""
        return None

    @property
    def n_bytes(self) -> int | None:
        """Not known."""
        return None

    def fetch(self, report: Report) -> None:  # noqa: B027 (most texts are here)
        """Nothing to do."""

    @abstractmethod
    def chunks(self) -> Iterator[str]:
        """The text in pieces."""

    def documents(self) -> Iterator[Document]:
        """The text as one document."""
        yield Document(self.label, map(Piece, self.chunks()))


# ---- kinds of file


class Input(Protocol):
    """The bytes of one file, wherever they come from."""

    @property
    def label(self) -> str: ...  # in messages, and the name of its document

    @property
    def path(self) -> PurePath: ...  # of which the suffix counts

    @property
    def size(self) -> int | None: ...  # bytes

    def open(self) -> BinaryIO:
        """The bytes from the start. Raises UsageError if they cannot be read."""

    def open_seekable(self) -> BinaryIO:
        """The same for a reader that goes back and forth."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it is known, and how its documents are read."""

    what: str  # in messages, as in "a PDF"
    read: Callable[[Input, DataConfig], Iterator[Document]]
    """The documents of a file; raises NotText before the first of them if there is nothing to read, UsageError if it is damaged."""
    suffixes: tuple[str, ...] = ()
    is_content: Callable[[bytes, Input], bool] | None = None
    """Whether a file that begins with these bytes is of this kind. Without it the kind is text, and is known by its suffix."""
    declared: Callable[[bytes], str] | None = None
    """The encoding that a text of this kind says it is in, by its first bytes; empty where it does not."""


class NotText(UsageError):
    """A file holds no text that could be read. Alone it is refused; in a folder it is skipped, and counted by `what` it is."""

    def __init__(self, label: str, what: str, advice: str = "give a file of text") -> None:
        super().__init__(f"{label} is {what}: {advice}")
        self.what = what


def noun(what: str) -> str:
    """What a file is, without the article: as one counts it."""
    return what.removeprefix("a ").removeprefix("an ")


def refuse_longer(n: int, label: str) -> None:
    """Raise UsageError for a document of more than DOCUMENT_LIMIT characters or bytes."""
    if n > DOCUMENT_LIMIT:
        raise UsageError(f"a document in {label} is longer than {DOCUMENT_LIMIT:,} bytes: cut it in parts")
