"""Token ids of whole words, remembered: a text repeats its words, and the library needs to encode each different word only once.

GPT-2's pattern takes whitespace only at the start of a match or in a match of its own, and looks behind nowhere. So there are places
where it always cuts, and what is on either side does not depend on the other; words.c knows some of them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from minigpt_cli.storage import native_build
from minigpt_cli.tokenization.contract import Ids

MOST = 1 << 20  # words: about 60 MB
_P, _N = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {"make": (_N,), "free": (_P,), "missing": (_P, _P, _P, _N, _P, _P), "learn": (_P, _P, _P, _N), "encode": (_P, _P, _P, _N, _P)}


@cache
def library() -> ctypes.CDLL | None:
    """The functions of words.c, built at the first call; None if they cannot be built."""
    found = native_build.load(Path(__file__).with_name("words.c"))
    for name, arguments in _ARGUMENTS.items() if found else ():
        function = getattr(found, f"words_{name}")
        function.argtypes, function.restype = arguments, {"make": _P, "free": None}.get(name, _N)
    return found


class Words:
    """Words and their ids. When there are MOST, all are forgotten: what occurs often comes back soon."""

    def __init__(self, functions: ctypes.CDLL, encode: Callable[[list[str]], list[list[int]]]) -> None:
        """`encode` gives the ids of each of several words."""
        self._c, self._encode_new = functions, encode
        self._table = self._new_table()

    def _new_table(self) -> int:
        table: int = self._c.words_make(MOST)
        if not table:
            raise MemoryError
        self._free = weakref.finalize(self, self._c.words_free, table)
        return table

    def encode(self, parts: list[str]) -> Ids:
        """The ids of `parts` joined: text and added tokens by turns."""
        encoded = [part.encode("utf-8") for part in parts]
        text, ends = b"".join(encoded), np.cumsum([len(part) for part in encoded])
        starts, lengths, ids = np.empty(len(text), np.int64), np.empty(len(text), np.int64), np.empty(len(text), np.uint32)
        known = (self._table, text, ends.ctypes.data, len(ends))
        n_new = self._c.words_missing(*known, starts.ctypes.data, lengths.ctypes.data)
        try:
            if n_new > 0:
                places = zip(starts[:n_new].tolist(), lengths[:n_new].tolist(), strict=True)
                found = self._encode_new([text[start : start + length].decode("utf-8") for start, length in places])
                counts = np.array([len(word) for word in found], np.int64)
                flat = np.fromiter((i for word in found for i in word), np.uint32, int(counts.sum()))
                n_new = self._c.words_learn(self._table, flat.ctypes.data, counts.ctypes.data, n_new)
            n = -1 if n_new < 0 else self._c.words_encode(*known, ids.ctypes.data)
            if n < 0:
                raise MemoryError
        except BaseException:  # words without ids are in the table now
            self._free()
            self._table = self._new_table()
            raise
        return ids[:n].copy()
