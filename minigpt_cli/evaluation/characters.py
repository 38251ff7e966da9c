"""From nats per token to nats per character, whatever the tokenizer. NumPy only.

A token's nats are divided equally among the characters that it touches; a character spelled by several tokens (an accented letter in byte
tokens) gets a share of each. The sum over characters is the sum over tokens, and every tokenizer gives one number for each of the same
characters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.tokenization.contract import Spelling

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 1 << 16  # tokens whose text is made at once


def spelled(ids: npt.NDArray[np.integer], token_bytes: Sequence[bytes]) -> str:
    """The text that `ids` spell. Raises MiniGPTError where they end or begin inside a character."""
    try:
        return "".join(Spelling(token_bytes).pieces(ids[start : start + _BLOCK] for start in range(0, len(ids), _BLOCK)))
    except UnicodeDecodeError as error:
        raise MiniGPTError("the tokens are not whole UTF-8 text: tokenize the text again") from error


def begins_character(text: bytes) -> npt.NDArray[np.bool_]:
    """Which bytes of the UTF-8 `text` begin a character, (n_bytes,): all but those that continue one."""
    begins: npt.NDArray[np.bool_] = (np.frombuffer(text, dtype=np.uint8) & 0xC0) != 0x80
    return begins


def per_character(token_nats: npt.ArrayLike, token_bytes: npt.ArrayLike, text: bytes) -> tuple[Floats, Ints]:
    """Nats of every character of the UTF-8 `text`, and the index of the token in which each begins, both (n_chars,).

    `token_nats` and `token_bytes` (their lengths in bytes) are those of its tokens. Raises MiniGPTError if they do not spell it.
    """
    nats = np.asarray(token_nats, dtype=np.float64)
    lengths: Ints = np.asarray(token_bytes, dtype=np.int64)
    ends = np.cumsum(lengths)
    spelled_bytes = int(ends[-1]) if len(ends) else 0
    if spelled_bytes != len(text):
        raise MiniGPTError(
            f"the tokens spell {spelled_bytes:,} bytes of a text of {len(text):,}: the tokenizer changes the text, so no score is exact"
        )
    starts = np.flatnonzero(begins_character(text))  # (n_chars,) byte where each character begins
    n_chars = len(starts)
    if not n_chars:
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    begins = ends - lengths
    if len(nats) == n_chars == len(text) or (len(nats) == n_chars and np.array_equal(begins, starts)):
        return nats.copy(), np.arange(n_chars, dtype=np.int64)  # one token a character
    first = np.clip(np.searchsorted(starts, begins, side="right") - 1, 0, n_chars - 1)  # (n_tokens,) first character touched
    last = np.clip(np.searchsorted(starts, ends, side="left") - 1, first, n_chars - 1)
    touched = last - first + 1
    token = np.repeat(np.arange(len(nats)), touched)
    character = np.repeat(first, touched) + np.arange(len(token)) - np.repeat(np.cumsum(touched) - touched, touched)
    shared = np.bincount(character, weights=(nats / touched)[token], minlength=n_chars)
    begun_by = np.searchsorted(ends, starts, side="right")  # the token whose bytes hold the character's first
    return shared.astype(np.float64), np.minimum(begun_by, len(nats) - 1).astype(np.int64)
