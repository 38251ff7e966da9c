"""The parts of a tokenized text that are scored one by one: the answers of conversations, or documents. No torch.

The tokens that stand between parts are no characters. What the model pays for the one that ends a part counts for the part's last
character, so that saying where a text ends is scored, and scores are per character whatever the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import DataConfig
from minigpt_cli.data import chat
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.tokenization.char import code_points
from minigpt_cli.tokenization.contract import END_OF_TEXT, Spelling, Tokenizer, added_tokens, end_of_text

PartKind = Literal["answers", "documents"]
Tokens = npt.NDArray[Any]
Points = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Parts:
    """Where the parts of N tokens are."""

    kind: PartKind
    scored: npt.NDArray[np.bool_]  # (N,) tokens of parts, the one that ends each among them
    marks: npt.NDArray[np.bool_]  # (N,) tokens that are no characters
    starts: npt.NDArray[np.intp]  # (n_parts,) first token of each


def masked_after(config: DataConfig, tokenizer: Tokenizer) -> int | None:
    """The token that no later token attends across, with --document-mask; None: attention goes across documents."""
    return end_of_text(tokenizer) if config.document_mask else None


def parts_of(tokens: Tokens, tokenizer: Tokenizer, *, documents: bool = False) -> Parts | None:
    """The answers among `tokens`, or their `documents`; None for one text."""
    if (answers := chat.answers(tokens, tokenizer)) is not None:
        return Parts("answers", answers, chat.is_mark(tokens, tokenizer), chat.answer_starts(tokens, tokenizer))
    if not documents or (end := end_of_text(tokenizer)) is None:
        return None
    ends = np.asarray(tokens) == end
    begins = np.concatenate([[True], ends[:-1]]) & ~ends  # a document has a character
    return Parts("documents", np.ones(len(ends), np.bool_), ends, np.flatnonzero(begins))


def context_of(dataset: Dataset, name: str, length: int) -> Tokens:
    """The tokens that a split is read after, at most `length`: the end of a document, else the end of the split before it, if it follows
    one."""
    if dataset.in_documents and (end := end_of_text(dataset.tokenizer)) is not None:
        return np.array([end])
    before = dataset.before(name)
    return np.array([], np.int64) if before is None else before.tokens[-length:]


class LearnedText:
    """Reads what training learns of a tokenized text; what ends an answer or a document is a line break."""

    def __init__(self, tokenizer: Tokenizer, kind: PartKind | None) -> None:
        self._tokenizer, self._kind = tokenizer, kind
        token_bytes = _learned_bytes(tokenizer, kind)
        self._spelling = Spelling(token_bytes)
        characters = [token.decode("utf-8", "replace") for token in token_bytes]
        whole = all(len(c) == 1 and c.encode("utf-8") == token for c, token in zip(characters, token_bytes, strict=True))
        self._points = code_points("".join(characters)) if whole else None  # of each id, where each is a character

    def pieces(self, blocks: Iterable[Tokens], errors: Literal["strict", "replace"] = "strict") -> Iterator[str]:
        """The text of tokens that are given in blocks, in pieces; `errors` as in Spelling.pieces."""
        return self._spelling.pieces(_answers(blocks, self._tokenizer) if self._kind == "answers" else blocks, errors)

    def points(self, blocks: Iterable[Tokens]) -> Iterator[Points]:
        """The code points of the same, U+FFFD for what is no character."""
        if self._points is None or self._kind == "answers":
            return map(code_points, self.pieces(blocks, "replace"))
        return map(self._points.__getitem__, blocks)


def _answers(blocks: Iterable[Tokens], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """The tokens of answers, block by block."""
    speaker: Tokens = np.empty(0, np.uint16)  # the last mark so far
    for block in blocks:
        part = np.concatenate([speaker, block])
        if (answers := chat.answers(part, tokenizer)) is not None:
            yield part[answers]
        speaker = part[chat.is_mark(part, tokenizer)][-1:]


def learned_text(dataset: Dataset, name: str) -> tuple[Tokens, list[bytes]]:
    """The tokens of a split that training learns, of conversations the answers, and the bytes that each id stands for."""
    tokens, tokenizer = dataset.split(name).tokens, dataset.tokenizer
    found = parts_of(tokens, tokenizer, documents=dataset.in_documents)
    if found is None:
        return tokens, tokenizer.token_bytes()
    return np.asarray(tokens)[found.scored], _learned_bytes(tokenizer, found.kind)


def _learned_bytes(tokenizer: Tokenizer, kind: PartKind | None) -> list[bytes]:
    """The bytes that each id stands for; what ends an answer or a document is a line break."""
    pieces = tokenizer.token_bytes()
    if kind is not None:
        pieces[added_tokens(tokenizer)[chat.END if kind == "answers" else END_OF_TEXT]] = b"\n"
    return pieces
