"""What every kind of source promises: documents, which are pieces of text, in one order, as often as they are asked for.

A document of plain text is learned whole. Of a conversation the answers are learned and the rest is read: its pieces say which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, Protocol

from minigpt_cli.storage.downloads import Report


class Piece(NamedTuple):
    """A part of a document's text."""

    text: str
    learned: bool = True


Document = Iterable[Piece]


class Source(Protocol):
    """Documents from one place. `PlainText` and `ChatFile` are the kinds."""

    @property
    def label(self) -> str: ...  # what the person typed

    @property
    def n_bytes(self) -> int | None: ...  # for a progress bar

    @property
    def once(self) -> bool: ...  # whether documents() can be asked for only once

    @property
    def marks(self) -> tuple[str, ...]: ...  # tokens that a tokenizer gets for this kind of source; each is a piece of its own

    @property
    def split_by(self) -> Literal["character", "conversation"]: ...  # where splits may be cut: in one long document, or between many

    def fetch(self, report: Report) -> None:
        """Bring the text onto this machine, if it is not here."""

    def documents(self) -> Iterator[Document]:
        """The documents, in order. Raises UsageError where one cannot be read."""


class PlainText(ABC):
    """A source of one document, which is learned whole: what texts of every origin have in common."""

    label: str
    once: bool = False
    marks: tuple[str, ...] = ()
    split_by: Literal["character", "conversation"] = "character"

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
        yield map(Piece, self.chunks())
