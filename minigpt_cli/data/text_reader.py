"""Passes over the documents of a source: count and hash them, cut them into splits, and note what was written for each split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from minigpt_cli.data.atomic_folder import Preparing
from minigpt_cli.data.dataset import SplitRecord
from minigpt_cli.data.sources.contract import Document, Piece, Source
from minigpt_cli.errors import MiniGPTError, TextTooShort
from minigpt_cli.storage.atomic_io import explained
from minigpt_cli.tokenization.char import code_points


class Text:
    """A source's documents as they are used: filtered, and counted by `scan`."""

    def __init__(self, source: Source, ascii_only: bool) -> None:
        self.source = source
        self.name = "standard input" if source.label == "-" else source.label  # in a sentence
        self.sha256 = ""
        self.n_chars = self.n_bytes = self.n_documents = 0
        self.alphabet: npt.NDArray[np.uint32] = np.empty(0, np.uint32)  # every distinct code point but those of marks, ascending
        self._ascii_only = ascii_only

    @property
    def length(self) -> int:
        """How much there is to split, in what the source is split by."""
        return self.n_chars if self.source.split_by == "character" else self.n_documents

    def documents(self) -> Iterator[Document]:
        """The documents, without empty pieces."""
        for document in self.source.documents():
            yield replace(document, pieces=self._filtered(document))

    def _filtered(self, document: Document) -> Iterator[Piece]:
        for piece in document.pieces:
            if self._ascii_only and not piece.text.isascii():
                piece = piece._replace(text=piece.text.encode("ascii", "ignore").decode("ascii"))
            if piece.text:
                yield piece

    def scan(self) -> Iterator[Preparing]:
        """Read the documents once: their length, hash and alphabet. Raises TextTooShort if there is none."""
        sha256, seen = hashlib.sha256(), np.zeros(0x110000, np.bool_)
        with explained("read the text"):
            total = self.source.n_bytes
            for document in self.documents():
                for piece in document.pieces:
                    data = piece.text.encode("utf-8")
                    sha256.update(data)
                    self.n_chars += len(piece.text)
                    self.n_bytes += len(data)
                    if piece.text not in self.source.marks:
                        seen[code_points(piece.text)] = True
                        yield Preparing(min(self.n_bytes, total or self.n_bytes), total, "reading")
                self.n_documents += 1
        if not self.n_chars:
            kind = "has no ASCII character" if self._ascii_only else "is empty"
            raise TextTooShort(f"{self.name} {kind}: give a text with at least a few thousand characters")
        self.sha256 = sha256.hexdigest()
        self.alphabet = np.flatnonzero(seen).astype(np.uint32)


class Cutter:
    """Hands out a text's documents split by split, hashing the whole on the way."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._documents = text.documents()
        self._pieces = chain.from_iterable(document.pieces for document in self._documents)
        self._sha256 = hashlib.sha256()

    def take(self, length: int) -> Iterator[Document]:
        """The next `length` characters of the one document, or the next `length` documents; less only if the text ends."""
        if self._text.source.split_by == "character":
            yield Document(self._text.name, self._hashed(self._cut(length)))
        else:
            for document in islice(self._documents, length):
                yield replace(document, pieces=self._hashed(document.pieces))

    def check_end(self) -> None:
        """Raise MiniGPTError unless what was handed out is the whole text, as it was when it was scanned."""
        if next(self._pieces, None) or self._sha256.hexdigest() != self._text.sha256:
            raise MiniGPTError(f"{self._text.name} changed while it was read: run the command again")

    def _cut(self, n_chars: int) -> Iterator[Piece]:
        while n_chars and (piece := next(self._pieces, None)):
            head, rest = piece.text[:n_chars], piece.text[n_chars:]
            if rest:
                self._pieces = chain([piece._replace(text=rest)], self._pieces)
            n_chars -= len(head)
            yield piece._replace(text=head)

    def _hashed(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._sha256.update(piece.text.encode("utf-8"))
            yield piece


class Counted:
    """What passes of a split's text, counted and hashed, and the tokens written for it."""

    def __init__(self) -> None:
        self._text, self._file = hashlib.sha256(), hashlib.sha256()
        self.n_chars = self.n_bytes = self.n_tokens = self.n_learned = 0

    def passing(self, document: Document) -> Iterator[str]:
        """The text of a document, noted as it passes."""
        for piece in document.pieces:
            data = piece.text.encode("utf-8")
            self._text.update(data)
            self.n_chars += len(piece.text)
            self.n_learned += len(piece.text) if piece.learned else 0
            self.n_bytes += len(data)
            yield piece.text

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
