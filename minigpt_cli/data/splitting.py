"""Which part of a text is trained on, and which is held back.

character     one document: cut once, or twice, in its length
conversation  conversations: cut between two of them, in their order
document      ten documents and more: each goes to a split as a whole, by a hash of its text. Adding documents moves none that is
              there (unless a split had none by its hash, and so was given one), and equal documents fall together.
each          fewer documents than that: each is cut in its length, since one of few would hold too much or too little
given         a source for each split, or official splits
shortened     as character or conversation, with part of the training text left out (--max-chars), so that no split follows another
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from math import floor

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import DataConfig
from minigpt_cli.data.background import BackgroundHash
from minigpt_cli.data.dataset import IN_ORDER, SPLITS, Cut
from minigpt_cli.data.sources.contract import Document, Piece
from minigpt_cli.data.text_reader import FEW, Text
from minigpt_cli.errors import MiniGPTError, TextTooShort
from minigpt_cli.tokenization.contract import END_OF_TEXT

STRETCH = 250_000  # characters
_NEVER = 1 << 63

_Read = tuple[str, Iterator[Piece]]  # a document's name and pieces


class Splitter:
    """Hands out a scanned text split by split."""

    def __init__(self, text: Text, config: DataConfig) -> None:
        """Raises TextTooShort if a split would have nothing."""
        self._text = text
        self._fractions = {"train": config.train_frac, "test": config.test_frac}
        self._max_chars = config.max_chars
        self.cut = self._kind()
        self.names = SPLITS[: 3 if config.test_frac or "test" in text.given else 2]
        self._of: npt.NDArray[np.uint8] = np.empty(0, np.uint8)  # with "document": the number of each document's split
        if self.cut == "document":
            self._of = by_hash(text.hashes, config.train_frac, config.test_frac)
            self.lengths = {name: int((self._of == i).sum()) for i, name in enumerate(self.names)}
        elif self.cut == "given":
            self.lengths = {name: text.given[name] for name in self.names}
        else:
            self.lengths = self._lengths(text.n_documents if self.cut == "conversation" else text.n_chars)
        for name, length in self.lengths.items():
            if not length:
                unit = {"conversation": "conversation", "document": "document", "given": "document"}.get(self.cut, "character")
                n = text.n_chars if unit == "character" else text.n_documents
                repeated = f", {text.n_duplicates} of which repeat another" * (self.cut == "document" and text.n_duplicates > 0)
                has = f"{n} {unit}{'s' * (n != 1)}{repeated}"
                raise TextTooShort(f"{text.name} has {has}, which leaves none for the {name} split: use more text")

    def _kind(self) -> Cut:
        if self._text.given:
            return "given"
        if self._text.source.split_by == "conversation":
            return "conversation"
        if not self._text.many:
            return "character"
        return "document" if self._text.n_documents >= FEW else "each"

    def _lengths(self, length: int) -> dict[str, int]:
        """How much of so much each split gets; validation what is left."""
        train, test = floor(length * self._fractions["train"]), floor(length * self._fractions["test"])
        return {"train": train, "val": length - train - test} | ({"test": test} if self._fractions["test"] else {})

    @property
    def in_order(self) -> bool:
        """Whether the splits follow each other in the text."""
        return self.cut in IN_ORDER

    @property
    def train_share(self) -> float:
        """About which share of the text is trained on."""
        share = self.lengths["train"] / sum(self.lengths.values())
        return min(share, self._max_chars / self._text.n_chars) if self._max_chars else share

    def held_out(self) -> npt.NDArray[np.bool_] | None:
        """Which documents are validated on, (documents,); None where documents are cut, or where the person chose them."""
        if self.cut == "document":
            return np.equal(self._of, self.names.index("val"))
        if self.cut != "conversation":
            return None
        number = np.arange(self._text.n_documents)
        begin = self.lengths["train"]
        return (number >= begin) & (number < begin + self.lengths["val"])

    def notices(self) -> list[str]:
        """How several documents are split, and how many repeat another."""
        if not self._text.many:
            return []
        held = self.names[1:]
        how = {
            "document": "by a hash of their text: " + ", ".join(f"{self.lengths[name]:,} for {name}" for name in self.names),
            "each": f"each in its length: its end is for {' and '.join(held)}",
            "given": "as given: " + ", ".join(f"{self.lengths[name]:,} for {name}" for name in self.names),
        }[self.cut]
        found = [f"{self._text.n_documents:,} documents, split {how}"]
        if repeated := self._text.n_duplicates:
            found.append(f"{repeated:,} documents repeat another word for word")
        return found

    def parts(self) -> Iterator[tuple[str, Document]]:
        """Every document, or part of one, with its split. Raises MiniGPTError if the text is not what it was when it was scanned."""
        if not self._max_chars:
            return self._whole_parts()
        shortened = self._first_conversations if self._text.source.split_by == "conversation" else self._stretches_of
        return shortened(self._whole_parts())

    def _first_conversations(self, parts: Iterator[tuple[str, Document]]) -> Iterator[tuple[str, Document]]:
        """The same with the first conversations to train on, as many whole ones as fit. All are read, so that all are hashed."""
        left = self._max_chars
        for name, document in parts:
            if name != "train":
                yield name, document
                continue
            messages = list(document.pieces)
            left = max(0, left - sum(len(piece.text) for piece in messages))
            if left:
                yield name, document._replace(pieces=messages)

    def _stretches_of(self, parts: Iterator[tuple[str, Document]]) -> Iterator[tuple[str, Document]]:
        """The same with some of the training text alone: its first characters or, where they are many, stretches from all over it. All is
        read to its end, so that all is hashed."""
        stretches = self._stretches()
        (begin, end), at = next(stretches), 0  # in characters of training text

        def taken(pieces: Iterable[Piece]) -> Iterator[Piece]:
            nonlocal begin, end, at
            any_taken = False
            for piece in pieces:
                if self._text.many and piece.text == END_OF_TEXT:
                    if any_taken:
                        yield piece
                    continue
                after = at + len(piece.text)
                while begin < after:
                    yield piece.part(begin - at, end - at)
                    any_taken = True
                    if end > after:
                        break
                    begin, end = next(stretches, (_NEVER, _NEVER))
                at = after

        for name, document in parts:
            if name != "train":
                yield name, document
                continue
            pieces = taken(document.pieces)
            if first := next(pieces, None):
                yield name, document._replace(pieces=chain([first], pieces))

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """Where each stretch of the training text that is taken begins and ends."""
        total = self._train_chars()
        taken = min(total, self._max_chars)
        n = max(1, taken // STRETCH)
        for i in range(n):
            left_out = i * (total - taken) // n  # before it
            yield left_out + i * taken // n, left_out + (i + 1) * taken // n

    def _train_chars(self) -> int:
        """Characters of the training text."""
        if self.cut == "character":
            return self.lengths["train"]
        if self.cut == "given":
            return self._text.given_chars["train"]
        lengths = self._text.lengths
        if self.cut == "document":
            return int(np.array(lengths, np.uint64)[self._of == 0].sum())
        return sum(self._lengths(length)["train"] for length in lengths)

    def _whole_parts(self) -> Iterator[tuple[str, Document]]:
        sha256 = BackgroundHash()

        def hashed(pieces: Iterable[Piece]) -> Iterator[Piece]:
            for piece in pieces:
                sha256.update(piece.utf8)
                yield piece

        if self.cut == "given":
            for number, document in enumerate(self._text.documents()):
                if number and not self._text.many and self._text.source.split_by == "character":
                    sha256.update(END_OF_TEXT.encode())
                pieces = hashed(document.pieces)
                yield document.split or "train", document._replace(pieces=pieces)
                _drain(pieces)
            return self._check(sha256.hexdigest())
        documents: Iterator[_Read]
        if self._text.is_kept:
            documents = ((document.name, iter(document.pieces)) for document in self._text.documents())
        else:
            documents = ((document.name, hashed(document.pieces)) for document in self._text.documents())
        yield from self._in_order(documents) if self.in_order else self._by_document(documents)
        self._check("longer" if next(documents, None) else sha256.hexdigest())

    def _check(self, sha256: str) -> None:
        if not self._text.is_kept and sha256 != self._text.sha256:
            raise MiniGPTError(f"{self._text.name} changed while it was read: run the command again")

    def _in_order(self, documents: Iterator[_Read]) -> Iterator[tuple[str, Document]]:
        if self.cut == "conversation":
            for name in self.names:
                for title, conversation in islice(documents, self.lengths[name]):
                    yield name, Document(title, conversation)
            return
        title, whole = next(documents, (self._text.name, iter(())))
        pieces = _Pieces(whole)
        for name in self.names:
            yield name, Document(title, pieces.take(self.lengths[name]))
        _drain(pieces.left)

    def _by_document(self, documents: Iterator[_Read]) -> Iterator[tuple[str, Document]]:
        for number, (title, document) in enumerate(islice(documents, self._text.n_documents)):
            if self.cut == "document":
                yield self.names[self._of[number]], Document(title, document)
                _drain(document)
                continue
            pieces = _Pieces(document)
            for name, length in self._lengths(self._text.lengths[number]).items():
                if length:
                    yield name, Document(title, chain(pieces.take(length), [Piece(END_OF_TEXT)]))
            _drain(pieces.left)


def _drain(pieces: Iterator[Piece]) -> None:
    """Read to the end, so that all is hashed, whatever was taken of it."""
    for _ in pieces:
        pass


class _Pieces:
    """Pieces of text, taken so many characters at a time."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self.left = pieces

    def take(self, n_chars: int) -> Iterator[Piece]:
        while n_chars and (piece := next(self.left, None)):
            head = piece.part(0, n_chars)
            if rest := piece.text[n_chars:]:
                self.left = chain([Piece(rest, piece.learned)], self.left)
            n_chars -= len(head.text)
            yield head


def by_hash(hashes: Iterable[int], train_frac: float, test_frac: float) -> npt.NDArray[np.uint8]:
    """The number of each document's split, from a 64-bit hash of its text. Where none falls into a split, it gets the
    lowest hash of the largest."""
    own = np.array(hashes, np.uint64)
    place = own / 2.0**64
    found = np.where(place < test_frac, 2, np.where(place < 1 - train_frac, 1, 0)).astype(np.uint8)
    for wanted in (0, 1, 2) if test_frac else (0, 1):
        if not (found == wanted).any():
            most = own[found == np.bincount(found).argmax()]
            found[own == most.min()] = wanted
    return found
