"""What every kind of source promises: documents, which are pieces of text, in one order, as often as they are asked for.

A document of plain text is learned whole. Of a conversation the answers are learned and the rest is read: its pieces say which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from minigpt_cli.storage.downloads import Report


class Piece(NamedTuple):
    """A part of a document's text."""

    text: str
    learned: bool = True


@dataclass(frozen=True)
class Document:
    """A text by itself: its name says where it stands, as in `letters.jsonl:12`; its pieces can be read once, before the next document."""

    name: str
    pieces: Iterable[Piece]


class Source(Protocol):
    """Documents from one place. `PlainText` and `ChatFile` are the kinds."""

    @property
    def label(self) -> str: ...  # what the person typed

    @property
    def n_bytes(self) -> int | None: ...  # for a progress bar

    @property
    def marks(self) -> tuple[str, ...]: ...  # tokens that a tokenizer gets for this kind of source; each is a piece of its own

    @property
    def split_by(self) -> Literal["character", "conversation"]: ...  # where splits may be cut: in one long document, or between many

    @property
    def notices(self) -> list[str]: ...  # what was left out: of the last reading of documents(), when it has ended

    def fetch(self, report: Report) -> None:
        """Bring the text onto this machine, if it is not here."""

    def documents(self) -> Iterator[Document]:
        """The documents, in order, as often as they are asked for. Raises UsageError where one cannot be read."""


class PlainText(ABC):
    """A source of one document, which is learned whole: what texts of every origin have in common."""

    label: str
    marks: tuple[str, ...] = ()
    split_by: Literal["character", "conversation"] = "character"

    @property
    def notices(self) -> list[str]:
        """Nothing is left out."""
        return []

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
