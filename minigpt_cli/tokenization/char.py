"""Each character is a token: the vocabulary is every distinct code point of the text, in code point order.

Text is encoded with a NumPy table from code point to id, ASCII by `bytes.translate`, which is faster. Other programs use the
Hugging Face JSON (a `WordLevel` vocabulary of single characters), which gives the same ids a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import DataConfig
from minigpt_cli.errors import UnknownCharacters
from minigpt_cli.tokenization.contract import Ids, NarrowIds, TrainingText, checked_ids, encoded, hugging_face_json

_NO_BYTE = 0xFF  # in the table of ASCII: no id, or one that is not a byte


def code_points(text: str) -> Ids:
    """The code points of `text`."""
    return _points_of(text).astype(np.uint32, copy=False)


def _points_of(text: str) -> NarrowIds:
    """The same in as few bytes as they need, which takes less time."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    units = np.frombuffer(encoded(text, "utf-16-le"), np.uint16)
    return units if len(units) == len(text) else np.frombuffer(text.encode("utf-32-le"), np.uint32)


def listed(characters: Iterable[str]) -> str:
    """The first of some characters with their code points, and the number of the others."""
    found = sorted(set(characters))
    return " ".join(f"{c!r} (U+{ord(c):04X})" for c in found[:8]) + (f" and {len(found) - 8:,} more" if len(found) > 8 else "")


def unknown_characters(characters: Iterable[str], tokenizer: str) -> UnknownCharacters:
    """The error for characters that a tokenizer does not know, listing the first of them."""
    return UnknownCharacters(
        f"the {tokenizer} tokenizer does not know {listed(characters)}: leave them out, or train with a text or tokenizer that has them"
    )


class CharTokenizer:
    """Characters as tokens."""

    settings: tuple[str, ...] = ()
    edition = 1
    name = "char"

    def __init__(self, alphabet: npt.ArrayLike) -> None:
        """`alphabet`: the code point of each id, all distinct."""
        self._points = np.asarray(alphabet, np.uint32)  # (V,)
        dtype: type[np.unsignedinteger] = np.uint16 if len(self._points) < 1 << 16 else np.uint32
        self._unknown = np.iinfo(dtype).max
        self._table = np.full(0x110000, self._unknown, dtype)  # code point -> id; it has all, so no look-up is out of range
        self._table[self._points] = np.arange(len(self._points))
        self._of_ascii = np.minimum(self._table[:0x80], _NO_BYTE).astype(np.uint8).tobytes() + bytes(0x80)  # as translate wants it

    @classmethod
    def build(cls, config: DataConfig, text: TrainingText) -> Self:
        """The tokenizer of every character in the whole text, validation too: a vocabulary is not learned."""
        return cls(text.alphabet)

    def lacking(self, alphabet: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """The code points of `alphabet` that it does not know."""
        unknown: npt.NDArray[np.uint32] = alphabet[self._table[alphabet] == self._unknown]
        return unknown

    def extended(self, new: npt.NDArray[np.uint32]) -> CharTokenizer:
        """The same with tokens for more code points, which follow those that it has."""
        return CharTokenizer(np.concatenate([self._points, new]))

    @property
    def vocab_size(self) -> int:
        return len(self._points)

    def encode(self, text: str) -> Ids:
        """Ids of `text`. Raises UsageError that lists the characters it does not know."""
        return self._narrow(text).astype(np.uint32)

    def _narrow(self, text: str) -> NarrowIds:
        """Ids in few bytes. All its arrays have one length: memory taken and given back in many lengths grew by 100 MB for 1 GB of text."""
        points = _points_of(text)
        data = points.tobytes().translate(self._of_ascii) if text.isascii() else bytes([_NO_BYTE])
        ids: NarrowIds = np.frombuffer(data, np.uint8)
        if _NO_BYTE in data:
            ids = self._table.take(points, mode="clip")  # "clip" saves NumPy a buffer; no index is out of range
        if ids.size and ids.max() == self._unknown:
            raise unknown_characters((chr(p) for p in np.unique(points[ids == self._unknown])), self.name)
        return ids

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[NarrowIds]:
        """Ids piece by piece."""
        return map(self._narrow, pieces)

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of `ids`."""
        return self._points[checked_ids(ids, self.vocab_size)].astype("<u4").tobytes().decode("utf-32-le")

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 of each character."""
        return [chr(point).encode("utf-8") for point in self._points.tolist()]

    def to_json(self) -> str:
        """A Hugging Face `tokenizers` JSON that encodes and decodes the same."""
        split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
        # The format needs the name of an unknown token. It is not in the vocabulary: an unknown character is an error.
        model = {"type": "WordLevel", "vocab": {chr(p): i for i, p in enumerate(self._points.tolist())}, "unk_token": "<unk>"}
        return hugging_face_json(model, split, {"type": "Fuse"}, indent=1)
