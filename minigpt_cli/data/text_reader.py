"""One pass over a text after the other: count and hash it, cut it at characters, and note what was written for each part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from minigpt_cli.data.atomic_folder import Preparing
from minigpt_cli.data.corpora import File, TextSource
from minigpt_cli.data.dataset import SplitRecord
from minigpt_cli.errors import MiniGPTError, TextTooShort
from minigpt_cli.storage.atomic_io import explained
from minigpt_cli.tokenization.char import code_points


def named(label: str) -> str:
    """A source's label in a sentence."""
    return "standard input" if label == "-" else label


class Text:
    """A source's text as it is used: filtered, spooled if it can be read only once, counted by `scan`."""

    def __init__(self, source: TextSource, ascii_only: bool) -> None:
        self.label = source.label
        self.spool: Path | None = None
        self.sha256 = ""
        self.n_chars = self.n_bytes = 0
        self.alphabet: npt.NDArray[np.uint32] = np.empty(0, np.uint32)  # every distinct code point, ascending
        self._source = source
        self._ascii_only = ascii_only

    def chunks(self) -> Iterator[str]:
        """The text in pieces."""
        if self.spool is not None and self.sha256:
            return File(self.label, self.spool).chunks()
        chunks = self._source.chunks()
        if self._ascii_only:
            chunks = (chunk if chunk.isascii() else chunk.encode("ascii", "ignore").decode("ascii") for chunk in chunks)
        return filter(None, chunks)

    def scan(self) -> Iterator[Preparing]:
        """Read the text once: its length, hash and alphabet. Raises UsageError if it is empty."""
        sha256, seen = hashlib.sha256(), np.zeros(0x110000, np.bool_)
        with ExitStack() as stack, explained("read the text"):
            total = self._source.n_bytes
            spool: BinaryIO | None = stack.enter_context(self.spool.open("wb")) if self.spool else None
            for chunk in self.chunks():
                data = chunk.encode("utf-8")
                sha256.update(data)
                seen[code_points(chunk)] = True
                self.n_chars += len(chunk)
                self.n_bytes += len(data)
                if spool:
                    spool.write(data)
                yield Preparing(self.n_bytes, total, "reading")
        if not self.n_chars:
            kind = "has no ASCII character" if self._ascii_only else "is empty"
            raise TextTooShort(f"{named(self.label)} {kind}: give a text with at least a few thousand characters")
        self.sha256 = sha256.hexdigest()
        self.alphabet = np.flatnonzero(seen).astype(np.uint32)

    def changed(self) -> MiniGPTError:
        """The error for a text that is another one when it is read again."""
        return MiniGPTError(f"{named(self.label)} changed while it was read: run the command again")


class Cutter:
    """Hands out a text's pieces split by split, hashing the whole on the way."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._chunks = iter(chunks)
        self._rest = ""
        self.sha256 = hashlib.sha256()

    def take(self, n_chars: int) -> Iterator[str]:
        """The next `n_chars` characters in pieces; fewer only if the text ends."""
        while n_chars and (piece := self._rest or next(self._chunks, "")):
            head, self._rest = piece[:n_chars], piece[n_chars:]
            n_chars -= len(head)
            self.sha256.update(head.encode("utf-8"))
            yield head


class Counted:
    """Pieces of a split, counted and hashed as they pass, and the tokens written for them."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = pieces
        self._text, self._file = hashlib.sha256(), hashlib.sha256()
        self.n_chars = self.n_bytes = self.n_tokens = 0

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            data = piece.encode("utf-8")
            self._text.update(data)
            self.n_chars += len(piece)
            self.n_bytes += len(data)
            yield piece

    def written(self, data: bytes, n_tokens: int) -> None:
        """Note what went into the token file."""
        self._file.update(data)
        self.n_tokens += n_tokens

    def record(self) -> SplitRecord:
        """What dataset.json says of it."""
        return SplitRecord(
            n_tokens=self.n_tokens,
            n_chars=self.n_chars,
            n_bytes=self.n_bytes,
            text_sha256=self._text.hexdigest(),
            file_sha256=self._file.hexdigest(),
        )
