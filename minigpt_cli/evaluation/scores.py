"""The record of one model's score on one text. No torch: comparisons need only these.

A score covers every character of a text or, of conversations, the characters of the answers. The nats of the token that ends an answer or
a document are added to its last character.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from minigpt_cli.data.parts import PartKind
from minigpt_cli.evaluation.statistics import mean_interval


@dataclass(frozen=True)
class PartsScored:
    """The answers or documents that a score covers."""

    kind: PartKind
    first: npt.NDArray[np.int64]  # (n_parts,) first character of each
    ends_nats: float = 0.0  # nats of all their ends together; part of the score


@dataclass(frozen=True)
class Score:
    """One model on one text: the numbers, and the nats of every character behind them."""

    nats_per_token: float
    nats_per_char: float
    bits_per_byte: float
    perplexity: float  # exp(nats_per_token); depends on the tokenizer
    n_tokens: int
    n_chars: int
    n_bytes: int
    ci95: tuple[float, float]  # of nats_per_char, block bootstrap
    block_chars: int  # length of the resampled blocks
    text_sha256: str  # of the text that was read; of conversations, of all of them in their template
    char_nats: npt.NDArray[np.float64]  # (n_chars,)
    char_position: npt.NDArray[np.int64]  # (n_chars,) tokens of its window before the token that begins the character
    text: bytes  # the scored characters, UTF-8
    parts: PartsScored | None = None  # None for a plain text

    @property
    def n_answers(self) -> int | None:
        """Answers that were scored; None for other text."""
        return len(self.parts.first) if self.parts and self.parts.kind == "answers" else None

    @property
    def n_documents(self) -> int | None:
        """Documents that were scored; None for a plain text or answers."""
        return len(self.parts.first) if self.parts and self.parts.kind == "documents" else None

    @property
    def nats_per_char_without_ends(self) -> float:
        """Nats per character without the ends of answers and documents."""
        return self.nats_per_char - (self.parts.ends_nats / self.n_chars if self.parts else 0.0)

    @property
    def perplexity_per_word(self) -> float:
        """exp(nats per word). Words are what is between blanks, and each line end, as published figures on WikiText count them."""
        text = self.text.decode()
        per_word = self.nats_per_char * self.n_chars / max(1, len(text.split()) + text.count("\n"))
        return math.exp(per_word) if per_word < 700 else math.inf

    def lines(self) -> str:
        """The scored text, with a line break after each answer or document."""
        text = self.text.decode()
        if self.parts is None:
            return text
        return "".join(text[a:b] + "\n" for a, b in pairwise([*self.parts.first.tolist(), len(text)]))


def make_score(
    token_nats: npt.NDArray[np.float64],
    char_nats: npt.NDArray[np.float64],
    char_position: npt.NDArray[np.int64],
    text: bytes,
    *,
    parts: PartsScored | None = None,
    text_sha256: str = "",
) -> Score:
    """The score of a text from the nats of its tokens and characters; sums in float64. With `parts`, `text` holds only these, and
    `text_sha256` is of the whole text."""
    total = math.fsum(np.add.reduceat(token_nats, np.arange(0, len(token_nats), 4096)))
    interval = mean_interval(char_nats)
    per_char, per_token = total / len(char_nats), total / len(token_nats)
    shift = per_char - interval.mean  # rounding alone
    return Score(
        nats_per_token=per_token,
        nats_per_char=per_char,
        bits_per_byte=total / math.log(2) / len(text),
        perplexity=math.exp(per_token) if per_token < 700 else math.inf,
        n_tokens=len(token_nats),
        n_chars=len(char_nats),
        n_bytes=len(text),
        ci95=(interval.low + shift, interval.high + shift),
        block_chars=interval.block,
        text_sha256=text_sha256 or hashlib.sha256(text).hexdigest(),
        char_nats=char_nats,
        char_position=char_position,
        text=text,
        parts=parts,
    )
