"""What every tokenizer promises. Text is str, ids are NumPy integers. No torch."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import DataConfig
from minigpt_cli.errors import MiniGPTError, UsageError

Ids = npt.NDArray[np.uint32]
NarrowIds = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]  # in no more bytes than they need, for speed
Json = dict[str, Any]

END_OF_TEXT = "<|endoftext|>"  # the added token that ends a document, as GPT-2 writes it


class Tokenizer(Protocol):
    """Text to token ids and back: `decode(encode(s)) == s` for every s that it can encode."""

    name: str  # as given to --tokenizer: char, byte, bpe, gpt2, or the file's name

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Ids:
        """Ids of `text`. Raises UsageError that lists the characters it does not know."""

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[NarrowIds]:
        """Ids of the concatenated `pieces`, in bounded memory; their concatenation equals `encode` of the whole."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of `ids`; bytes that are not (yet) UTF-8 become U+FFFD."""

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id stands for, by id; their concatenation over a text is the text's UTF-8."""

    def to_json(self) -> str:
        """A Hugging Face `tokenizers` JSON that encodes and decodes the same."""


def added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The added tokens of a tokenizer, and their ids."""
    return {token["content"]: int(token["id"]) for token in json.loads(tokenizer.to_json())["added_tokens"]}


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """The id of the token that ends a document; None for a tokenizer without it."""
    return added_tokens(tokenizer).get(END_OF_TEXT)


def hugging_face_json(model: Json, pre_tokenizer: Json | None, decoder: Json, indent: int | None = None, **options: Any) -> str:
    """A Hugging Face `tokenizers` JSON of these parts; `options` may hold `normalizer` and `added_tokens`."""
    parts: Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(parts | options, ensure_ascii=False, indent=indent)  # to indent takes ten times as long


@dataclass(frozen=True)
class TrainingText:
    """What a tokenizer may learn from."""

    alphabet: npt.NDArray[np.uint32]  # every distinct code point of the whole text, ascending
    train_bytes: int = 0  # approximate size of train_text()
    train_text: Callable[[], Iterator[str]] = lambda: iter(())  # the training split in pieces, from its beginning at each call

    @classmethod
    def of(cls, text: str) -> Self:
        """The characters of `text`, without a training split."""
        return cls(np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32)))


class Builder(Protocol):
    """What a class in the registry's TOKENIZERS promises: it can be built for a text."""

    settings: tuple[str, ...]  # the fields of DataConfig, other than `tokenizer`, that change the result
    edition: int  # another one makes other tokens of the same text and settings

    def build(self, config: DataConfig, text: TrainingText) -> Tokenizer:
        """The tokenizer for this text; a class method."""


def encoded(text: str, encoding: str = "utf-8") -> bytes:
    """The bytes of `text`. Raises UsageError for half of a surrogate pair, as in a command line of bytes that are not UTF-8."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair (U+{ord(text[error.start]):04X})"
        raise UsageError(f"character {error.start} of the text is {half}: give UTF-8") from error


def checked_ids(ids: npt.ArrayLike, vocab_size: int) -> npt.NDArray[np.int64]:
    """`ids` as an index. Raises MiniGPTError if one is not in the vocabulary."""
    index = np.asarray(ids, np.int64).reshape(-1)
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < vocab_size:
        span = f"{index.min()} to {index.max()}"
        raise MiniGPTError(f"token ids from {span} do not fit a vocabulary of {vocab_size}: another tokenizer made them")
    return index


def added_pattern(contents: Iterable[str]) -> re.Pattern[str]:
    """Splits a text at added tokens, as the tokenizers library does: at the first, and of those that begin there at the longest."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(contents, key=len, reverse=True)))})")


def token_lengths(token_bytes: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Bytes that each id of a vocabulary stands for, (V,)."""
    return np.fromiter(map(len, token_bytes), np.int64, count=len(token_bytes))


class Spelling:
    """The bytes that each id of a vocabulary stands for, ready to read many ids."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._table = np.frombuffer(b"".join(token_bytes), np.uint8)
        self._lengths = token_lengths(token_bytes)
        self._starts = self._lengths.cumsum() - self._lengths

    def pieces(self, blocks: Iterable[npt.NDArray[np.integer]], errors: Literal["strict", "replace"] = "strict") -> Iterator[str]:
        """The text that blocks of ids spell, a piece for each; a character that two share is in the second. Raises UnicodeDecodeError
        for ids that begin or end inside a character, or with `replace` makes it U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        for block in blocks:
            n, ends = self._lengths[block], self._lengths[block].cumsum()
            places = np.arange(n.sum()) + np.repeat(self._starts[block] - (ends - n), n)  # of each byte in the table
            yield decoder.decode(self._table[places].tobytes())
        if rest := decoder.decode(b"", final=True):
            yield rest
