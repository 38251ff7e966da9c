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
from minigpt_cli.data.sources.contract import Document, Piece, Source, SplitName, with_text
from minigpt_cli.errors import TextTooShort, UsageError
from minigpt_cli.storage.atomic_io import explained
from minigpt_cli.tokenization.char import code_points
from minigpt_cli.tokenization.contract import END_OF_TEXT

_REPORT = 1 << 18  # bytes between two reports of progress
_TOGETHER = 1 << 16  # bytes of short documents that are looked at together
_END = END_OF_TEXT.encode()
KEPT = 1 << 26  # bytes of memory for a text that is kept, to be read once
_DOCUMENT = 400  # of them for a document beside its text
FEW = 10  # documents: fewer are each cut in their length


# The name and split of a document, and its pieces. A hundred thousand objects of other kinds would keep the garbage collector busy.
_Kept = tuple[str, SplitName | None, tuple[tuple[str, bool], ...]]


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
        self.given: Counter[str] = Counter()  # documents of each split, where the source says so,
        self.given_chars: Counter[str] = Counter()  # and characters in them
        self._ascii_only = config.ascii_only
        self._kept: list[_Kept] | None = None  # all documents of a text that is not large
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
        """The documents, without empty ones, each with its end."""
        end = [Piece(END_OF_TEXT)] if self.many else []
        if self._kept is None:
            for name, pieces, split, file, kind, encoding in self._read():
                yield Document(name, chain(pieces, end), split, file, kind, encoding)
        else:
            for name, split, texts in self._kept:
                yield Document(name, [Piece(text, learned) for text, learned in texts] + end, split)

    @property
    def is_kept(self) -> bool:
        """Whether all documents are in memory, so that they cannot change."""
        return self._kept is not None

    def _read(self) -> Iterator[Document]:
        for document in self.cleaning.documents(self.source):
            if (pieces := with_text(document.pieces)) is not None:
                yield document if pieces is document.pieces else document._replace(pieces=pieces)

    def scan(self) -> Iterator[Preparing]:
        """Read the documents once: their length, hash and alphabet. Raises TextTooShort if there is none."""
        sha256, alphabet, reported = BackgroundHash(), _Alphabet(), 0
        chats, marks, end_in = self.source.split_by == "conversation", self.source.marks, ""
        kept: list[_Kept] = []
        with explained("read the text"):
            total = self.source.n_bytes
            room = KEPT if (total or 0) <= KEPT else 0
            for document in self._read():
                before = _END if self.n_documents and not chats else b""  # the end of the document before
                own = hashlib.sha256() if self.n_documents else sha256  # the first is hashed once
                length, tail = 0, b""
                texts: list[tuple[str, bool]] = []
                for piece in document.pieces:
                    data, text = piece.utf8, piece.text
                    sha256.update(before + data)
                    before = b""
                    if own is not sha256:
                        own.update(data)
                    length += len(text)
                    self.n_bytes += len(data)
                    if _END in data or (tail and _END in tail + data[: len(_END)]):
                        end_in = end_in or document.name
                    tail = (tail + data if len(data) < len(_END) else data)[-len(_END) :]
                    if text not in marks:
                        alphabet.add(data)
                    room -= len(data)
                    if room >= 0:
                        texts.append((text, piece.learned))
                    else:
                        texts.clear()
                    if self.n_bytes >= reported:
                        yield Preparing(min(self.n_bytes, total or self.n_bytes), total, "reading")
                        reported = self.n_bytes + _REPORT
                room -= _DOCUMENT
                if room >= 0:
                    kept.append((document.name, document.split, tuple(texts)))
                else:
                    kept.clear()  # with a text of unknown size
                self._note(document, length, int(own.hexdigest()[:16], 16))
        if not self.n_chars:
            kind = "has no ASCII character" if self._ascii_only else "is empty"
            raise TextTooShort(f"{self.name} {kind}: give a text with at least a few thousand characters")
        if self.many:
            sha256.update(_END)
            if end_in:
                raise UsageError(f"{end_in} holds {END_OF_TEXT}, which ends a document: cut it there, with --documents '{END_OF_TEXT}'")
        self.sha256 = sha256.hexdigest()
        self.alphabet = alphabet.points()
        self._kept = kept if room >= 0 else None

    def _note(self, document: Document, n_chars: int, first_bits: int) -> None:
        """Count a document that was read."""
        name, _, split, file, kind, encoding = document
        self.n_documents += 1
        self.n_chars += n_chars
        self.hashes.append(first_bits)
        self.lengths.append(n_chars)
        self.file_of.append(self.files.setdefault(file, len(self.files)))
        self.kinds[kind] += n_chars
        if split is not None:
            self.given[split] += 1
            self.given_chars[split] += n_chars
        if encoding:
            self.encodings[encoding] += n_chars
        if n_chars < self.shortest[0]:
            self.shortest = (n_chars, name)
        if n_chars > self.longest[0]:
            self.longest = (n_chars, name)

    @property
    def n_duplicates(self) -> int:
        """Documents that repeat another word for word."""
        return len(self.hashes) - len(np.unique(np.array(self.hashes, np.uint64)))


class _Alphabet:
    """The distinct code points of texts."""

    def __init__(self) -> None:
        self._seen = np.zeros(0x110000, np.bool_)
        self._ascii = b""  # those seen
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Note the code points of UTF-8."""
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= _TOGETHER:
            self._note()

    def _note(self) -> None:
        """Nearly all text is ASCII that was seen before, which is dropped first: that is quick."""
        if new := b"".join(self._waiting).translate(None, self._ascii):
            self._seen[code_points(new.decode("utf-8"))] = True
            self._ascii = bytes(np.flatnonzero(self._seen[:128]).astype(np.uint8))
        self._waiting, self._size = [], 0

    def points(self) -> npt.NDArray[np.uint32]:
        """All of them, ascending."""
        self._note()
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
