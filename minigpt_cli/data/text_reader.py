"""Passes over the documents of a source: count and hash them, and note what was written for each split."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import DataConfig
from minigpt_cli.data.atomic_folder import Preparing
from minigpt_cli.data.background import BackgroundHash
from minigpt_cli.data.cleaning import Cleaning
from minigpt_cli.data.dataset import SplitRecord
from minigpt_cli.data.sources.contract import Document, Piece, Source, with_text
from minigpt_cli.errors import TextTooShort, UsageError
from minigpt_cli.storage.atomic_io import explained
from minigpt_cli.tokenization.char import code_points
from minigpt_cli.tokenization.contract import END_OF_TEXT

_REPORT = 1 << 18  # bytes between two reports of progress
_END = END_OF_TEXT.encode()
FEW = 10  # documents: fewer are each cut in their length


class Text:
    """A source's documents as they are used: cleaned, and counted by `scan`.

    Where there are several, each ends in END_OF_TEXT, which is hashed and is no character of the text.
    """

    def __init__(self, source: Source, config: DataConfig) -> None:
        self.source = source
        self.name = "standard input" if source.label == "-" else source.label  # in a sentence
        self.sha256 = ""
        self.n_chars = self.n_bytes = self.n_documents = self.n_empty = 0
        self.alphabet: npt.NDArray[np.uint32] = np.empty(0, np.uint32)  # every distinct code point but those of marks, ascending
        self.hashes = array("Q")  # the first 64 bits of each document's SHA-256
        self.lengths = array("Q")  # characters of each document
        self.shortest = (1 << 63, "")  # characters and name of a document
        self.longest = (0, "")
        self.files: dict[str, int] = {}  # the files that documents are in, numbered
        self.file_of = array("I")  # the number of each document's file
        self.kinds: Counter[str] = Counter()  # characters in files of each kind
        self.encodings: Counter[str] = Counter()  # characters in files that are read in each, UTF-8 left out
        self.given: Counter[str] = Counter()  # documents of each split, where the source says so
        self._ascii_only = config.ascii_only
        self.cleaning = Cleaning(config)

    @property
    def many(self) -> bool:
        """Whether there are several documents, each with an end of its own. Conversations have their own template."""
        most = max(self.given.values()) if self.given else self.n_documents
        return most > 1 and self.source.split_by != "conversation"

    @property
    def marks(self) -> tuple[str, ...]:
        """Tokens that the tokenizer is given."""
        return (END_OF_TEXT,) if self.many else self.source.marks

    def documents(self) -> Iterator[Document]:
        """The documents, without empty ones."""
        end = [Piece(END_OF_TEXT)] if self.sha256 and self.many else []
        for document in self.cleaning.documents(self.source):
            if (pieces := with_text(document.pieces)) is not None:
                yield Document(document.name, chain(pieces, end), document.split, document.file, document.kind, document.encoding)

    def scan(self) -> Iterator[Preparing]:
        """Read the documents once: their length, hash and alphabet. Raises TextTooShort if there is none."""
        sha256, alphabet, reported = BackgroundHash(), _Alphabet(), 0
        chats, end_in = self.source.split_by == "conversation", ""
        with explained("read the text"):
            total = self.source.n_bytes
            for document in self.documents():
                if self.n_documents and not chats:
                    sha256.update(END_OF_TEXT.encode())  # of the document before
                own = hashlib.sha256() if self.n_documents else sha256  # the first is hashed once
                before, tail = self.n_chars, b""
                for piece in document.pieces:
                    data = piece.utf8
                    sha256.update(data)
                    if self.n_documents:
                        own.update(data)
                    self.n_chars += len(piece.text)
                    self.n_bytes += len(data)
                    if _END in data or (tail and _END in tail + data[: len(_END)]):
                        end_in = end_in or document.name
                    tail = (tail + data)[-len(_END) :] if len(data) < len(_END) else data[-len(_END) :]
                    if piece.text not in self.source.marks:
                        alphabet.add(data)
                    if self.n_bytes >= reported:
                        yield Preparing(min(self.n_bytes, total or self.n_bytes), total, "reading")
                        reported = self.n_bytes + _REPORT
                self.n_documents += 1
                if document.split is not None:
                    self.given[document.split] += 1
                self.hashes.append(int(own.hexdigest()[:16], 16))
                self.lengths.append(length := self.n_chars - before)
                if length < self.shortest[0]:
                    self.shortest = (length, document.name)
                if length > self.longest[0]:
                    self.longest = (length, document.name)
                self.file_of.append(self.files.setdefault(document.file, len(self.files)))
                self.kinds[document.kind] += length
                if document.encoding:
                    self.encodings[document.encoding] += length
        if not self.n_chars:
            kind = "has no ASCII character" if self._ascii_only else "is empty"
            raise TextTooShort(f"{self.name} {kind}: give a text with at least a few thousand characters")
        if self.many:
            sha256.update(END_OF_TEXT.encode())
            if end_in:
                raise UsageError(f"{end_in} holds {END_OF_TEXT}, which ends a document: cut it there, with --documents '{END_OF_TEXT}'")
        self.sha256 = sha256.hexdigest()
        self.alphabet = alphabet.points()

    @property
    def n_duplicates(self) -> int:
        """Documents that repeat another word for word."""
        return len(self.hashes) - len(np.unique(np.array(self.hashes, np.uint64)))


class _Alphabet:
    """The distinct code points of texts."""

    def __init__(self) -> None:
        self._seen = np.zeros(0x110000, np.bool_)
        self._ascii = b""  # those seen

    def add(self, data: bytes) -> None:
        """Note the code points of UTF-8. Nearly all text is ASCII that was seen before, which is dropped first: that is quick."""
        if new := data.translate(None, self._ascii):
            self._seen[code_points(new.decode("utf-8"))] = True
            self._ascii = bytes(np.flatnonzero(self._seen[:128]).astype(np.uint8))

    def points(self) -> npt.NDArray[np.uint32]:
        """All of them, ascending."""
        return np.flatnonzero(self._seen).astype(np.uint32)


class Counted:
    """What passes of a split's text, counted and hashed, and the tokens written for it."""

    def __init__(self, end: str | None = None) -> None:
        self._end = end  # what ends a document: hashed and not counted
        self._text, self._file = BackgroundHash(), BackgroundHash()
        self.n_documents = self.n_chars = self.n_bytes = self.n_tokens = self.n_learned = 0

    def passing(self, document: Document) -> Iterator[str]:
        """The text of a document, noted as it passes."""
        self.n_documents += 1
        for piece in document.pieces:
            data = piece.utf8
            self._text.update(data)
            if piece.text != self._end:
                self.n_chars += len(piece.text)
                self.n_learned += len(piece.text) if piece.learned else 0
                self.n_bytes += len(data)
            yield piece.text

    def resume(self, file: hashlib._Hash, n_tokens: int) -> None:
        """Begin with a token file that has this hash and so many tokens."""
        self._file, self.n_tokens = BackgroundHash(file), n_tokens

    @property
    def file_sha256(self) -> str:
        """The hash of what went into the token file so far."""
        return self._file.hexdigest()

    def written(self, data: memoryview, n_tokens: int) -> None:
        """Note what went into the token file."""
        self._file.update(data)
        self.n_tokens += n_tokens

    def record(self) -> SplitRecord:
        """What dataset.json says of it."""
        return SplitRecord(
            n_documents=self.n_documents,
            n_tokens=self.n_tokens,
            n_chars=self.n_chars,
            n_bytes=self.n_bytes,
            text_sha256=self._text.hexdigest(),
            file_sha256=self.file_sha256,
        )
