"""A folder of token files as a source: the text that they were made from.

Its splits are put together again: what was cut in its length is one document, and whole documents come split after split. Of conversations
a document is a question with its answer, since token files do not say where a conversation begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path

from minigpt_cli.config import DataConfig
from minigpt_cli.data.chat import TOKENS
from minigpt_cli.data.dataset import Dataset, Split, open_dataset
from minigpt_cli.data.sources.contract import Document, Piece, SplitBy
from minigpt_cli.data.sources.grouping import regrouped
from minigpt_cli.runstore.records import Fetched
from minigpt_cli.storage.downloads import Report
from minigpt_cli.tokenization.contract import END_OF_TEXT, Spelling, added_pattern

_MARKS, _ENDS = added_pattern(TOKENS), added_pattern([END_OF_TEXT])


class TokenFolder:
    """The documents that token files hold."""

    def __init__(self, folder: Path, label: str, options: DataConfig) -> None:
        self.label = label
        self._folder, self._options = folder, options

    @cached_property
    def _dataset(self) -> Dataset:
        return open_dataset(self._folder)

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self._dataset.tokenizer.token_bytes())

    @property
    def n_bytes(self) -> int:
        """The size of the text."""
        return self._dataset.n_bytes

    @property
    def on_disk(self) -> None:
        """Token files are no texts."""
        return None

    @property
    def marks(self) -> tuple[str, ...]:
        """The template's marks for conversations, none for texts."""
        return TOKENS if self._dataset.chats else ()

    @property
    def split_by(self) -> SplitBy:
        """Conversations are never cut."""
        return "conversation" if self._dataset.chats else "character"

    @property
    def notices(self) -> list[str]:
        """That all splits are read."""
        sizes = " and ".join(f"{name} {split.n_chars:,}" for name, split in self._dataset.splits().items())
        return [f"{self.label} holds token files: their whole text is read, {sizes} characters"]

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out when they were made."""
        return self._dataset.origins.skipped

    @property
    def fetched(self) -> list[Fetched]:
        """What came from the network when they were made."""
        return self._dataset.origins.fetched

    def fetch(self, report: Report) -> None:
        """Check the token files. Raises RunDamaged if they are not whole."""
        _ = self._dataset

    def documents(self) -> Iterator[Document]:
        """The documents that the tokens spell."""
        dataset, splits = self._dataset, self._dataset.splits()
        documents: Iterator[Iterable[Piece]]
        if dataset.chats:
            documents = chain.from_iterable(map(self._exchanges, splits.values()))
        elif dataset.cut in ("document", "given") or len({split.n_documents for split in splits.values()}) > 1:
            documents = chain.from_iterable(map(self._texts, splits.values()))
        else:  # each split has a part of every document
            documents = map(chain.from_iterable, zip(*map(self._texts, splits.values()), strict=True))
        named = (Document(f"{self.label}:{number}", pieces) for number, pieces in enumerate(documents, 1))
        found = named if dataset.chats else regrouped(named, self._options.documents, self.label)
        yield from (document._replace(file=self.label, kind="token files") for document in found)

    def _texts(self, split: Split) -> Iterator[Iterator[Piece]]:
        """The documents of a split, each in pieces that can be read once, before the next document."""
        pieces = self._spelling.pieces(split.blocks())
        if not self._dataset.in_documents:
            yield map(Piece, pieces)
            return
        parts = chain.from_iterable(map(_ENDS.split, pieces))
        for is_end, texts in groupby(filter(None, parts), END_OF_TEXT.__eq__):
            if not is_end:
                yield map(Piece, texts)

    def _exchanges(self, split: Split) -> Iterator[list[Piece]]:
        """The questions of a split, each with its answer."""
        found: list[Piece] = []
        speaker, answered = "", False
        for part in chain.from_iterable(map(_MARKS.split, self._spelling.pieces(split.blocks()))):
            if answered and part in ("<|system|>", "<|user|>"):
                yield found
                found, answered = [], False
            if part in TOKENS:
                speaker = part
                answered = answered or part == "<|assistant|>"
            if part:
                found.append(Piece(part, learned=speaker == "<|assistant|>" and part not in TOKENS))
        if found:
            yield found
