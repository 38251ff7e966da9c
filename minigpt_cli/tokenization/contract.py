"""What every tokenizer promises. Text is str, ids are NumPy integers; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]


class Tokenizer(Protocol):
    """Text to token ids and back: `decode(encode(s)) == s` for every s that it can encode."""

    name: str  # as given to --tokenizer: char, byte, bpe, gpt2, or the file's name

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Ids:
        """Ids of `text`. Raises UsageError that lists the characters it does not know."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of `ids`; bytes that are not (yet) UTF-8 become U+FFFD."""

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id stands for, by id; their concatenation over a text is the text's UTF-8."""

    def to_json(self) -> str:
        """A Hugging Face `tokenizers` JSON that encodes and decodes the same."""

    def save(self, path: Path) -> None:
        """Write `to_json()` to `path`, atomically."""
