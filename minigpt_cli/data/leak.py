"""How much of the validation text stands word for word in the training text. No torch.

A model may recite what it has seen, and its score then says nothing about new text. Counted are the characters of runs of RUN and more that
occur somewhere in what is trained on: shorter runs are phrases that every text repeats. Every window of RUN characters has a hash (64 bits:
Karp and Rabin 1987); those of the validation text are kept, and the training text is read past them once. So memory depends on the
validation text alone, of which a large one is sampled, as is a training text of more than TRAINING tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from minigpt_cli.data.background import in_threads
from minigpt_cli.data.dataset import Dtype, token_blocks
from minigpt_cli.data.parts import LearnedText, PartKind, Points
from minigpt_cli.runstore.records import Leak
from minigpt_cli.tokenization.contract import Tokenizer

RUN = Leak.run
SAMPLE, STRETCH = 1 << 19, 1 << 10  # tokens of the validation text, and of each of the stretches that a sample has
TRAINING, READ = 1 << 27, 1 << 20  # the same of the training text: three seconds or so
MATTERS = 0.01  # of the validation text. This much lowers a score by up to 1 %, about as much as runs of other seeds differ by

Hashes = npt.NDArray[np.uint64]
_BASE, _MIX = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd
T = TypeVar("T", np.uint64, np.intp)
_TABLE_BITS = 24


def leak_of(train: Path, val: Path, dtype: Dtype, tokenizer: Tokenizer, kind: PartKind | None) -> Leak:
    """How much of the tokens in the file `val` those in `train` hold; of answers or documents as they are learned."""
    reader = LearnedText(tokenizer, kind)
    n_train, n_val = (path.stat().st_size // np.dtype(dtype).itemsize for path in (train, val))

    def learned(path: Path, n: int, most: int, stretch: int) -> Iterator[Iterator[Points]]:
        """All of a file's `n` tokens, or stretches from all over them, `most` in all; read like this, since a memory map counts as used."""
        starts = [0] if n <= most else np.linspace(0, n - stretch, most // stretch).astype(np.int64).tolist()
        for start in starts:
            yield reader.points(token_blocks(path, dtype, start, n if n <= most else stretch))

    texts = [np.concatenate(list(pieces)) for pieces in learned(val, n_val, SAMPLE, STRETCH)]
    copied = verbatim(texts, learned(train, n_train, TRAINING, READ))
    return Leak(
        share=float(copied.mean()) if len(copied) else 0.0,
        n_chars=len(copied),
        of_val=min(1.0, SAMPLE / n_val),
        of_train=min(1.0, TRAINING / n_train),
    )


def warnings(leak: Leak | None) -> list[str]:
    """What to say before training: nothing below MATTERS."""
    if leak is None or leak.share < MATTERS:
        return []
    return [f"Warning: {leak.in_words}: a model can recite it, so expect a higher loss on new text"]


def verbatim(texts: Sequence[Points], training: Iterable[Iterable[Points]], run: int = RUN) -> npt.NDArray[np.bool_]:
    """Which characters of `texts`, in order, stand in a run of `run` characters of their text that occurs in one of the training texts,
    each given in pieces, all in code points, (n_chars,)."""
    windows = [_hashes(text, run) for text in texts]
    known = _distinct(np.sort(np.concatenate([*windows, np.empty(0, np.uint64)])))
    found = np.zeros(len(known), np.bool_)
    wanted = _Wanted(known)
    for places in in_threads(lambda points: wanted.places(_hashes(points, run)), _overlapping(training, run)):
        if len(new := _distinct(places[~found[places]])):
            found[new] = True
            wanted.remove(new)
            if found.all():
                break
    covered = [_covered(found[np.searchsorted(known, own)], len(text), run) for text, own in zip(texts, windows, strict=True)]
    return np.concatenate([np.empty(0, np.bool_), *covered])


class _Wanted:
    """Hashes that are looked for. Most others are told from them by their first and their last bits, since a search takes longer."""

    def __init__(self, known: Hashes) -> None:
        """`known`: different ones, ascending."""
        self._known = known
        bits = min(_TABLE_BITS, max(1, (4 * len(known)).bit_length()))
        self._shift, self._mask = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        self._n_with_first = np.bincount(self._first(known), minlength=1 << bits).astype(np.uint32)
        self._has_first, self._has_last = self._n_with_first > 0, np.zeros(1 << bits, np.bool_)
        self._has_last[self._last(known)] = True

    def _first(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        return (hashes >> self._shift).view(np.int64)

    def _last(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        return (hashes & self._mask).view(np.int64)

    def places(self, hashes: Hashes) -> npt.NDArray[np.intp]:
        """Where in `known` those of `hashes` stand that are looked for, ascending."""
        hashes = hashes[self._has_first.take(self._first(hashes))]
        hashes = np.sort(hashes[self._has_last.take(self._last(hashes))])  # a search for ascending ones takes a fifth of the time
        at = np.minimum(np.searchsorted(self._known, hashes), len(self._known) - 1)
        places: npt.NDArray[np.intp] = at[self._known[at] == hashes]
        return places

    def remove(self, places: npt.NDArray[np.intp]) -> None:
        """Look no more for those that stand at different `places`: a text that repeats itself has them again and again."""
        first = self._first(self._known[places])
        np.subtract.at(self._n_with_first, first, 1)
        self._has_first[first] = self._n_with_first[first] > 0


def _distinct(ascending: npt.NDArray[T]) -> npt.NDArray[T]:
    """Each value once; np.unique takes several times as long."""
    distinct: npt.NDArray[T] = ascending[np.diff(ascending, prepend=~ascending[:1]) != 0]
    return distinct


def _covered(begins: npt.NDArray[np.bool_], n_chars: int, run: int) -> npt.NDArray[np.bool_]:
    """Which of `n_chars` characters lie in a window of `run` that begins where `begins` says."""
    change = np.zeros(n_chars + 1, np.int64)
    starts = np.flatnonzero(begins)
    change[starts] += 1
    np.subtract.at(change, starts + run, 1)
    return np.cumsum(change[:-1]) > 0


def _overlapping(training: Iterable[Iterable[Points]], run: int) -> Iterator[Points]:
    """Parts of texts that are given in pieces; each window of `run` code points is in one part."""
    for pieces in training:
        before = np.empty(0, np.uint32)
        for piece in pieces:
            points = np.concatenate([before, piece])
            before = points[max(0, len(points) - run + 1) :]
            yield points


def _hashes(points: Points, run: int) -> Hashes:
    """A hash of every window of `run` code points, (N - run + 1,): the sum of point i times base ** i, modulo 2 ** 64."""
    n = len(points)
    if n < run:
        return np.empty(0, np.uint64)
    powers, inverses = _powers(n.bit_length(), _BASE), _powers(n.bit_length(), pow(_BASE, -1, 1 << 64))
    values = (points.astype(np.uint64) + np.uint64(1)) * np.uint64(_MIX)
    values ^= values >> np.uint64(31)
    sums = np.zeros(n + 1, np.uint64)
    np.cumsum(values * powers[:n], out=sums[1:])
    hashes: Hashes = (sums[run:] - sums[:-run]) * inverses[: n - run + 1]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(_MIX)  # so that the first bits depend on every character
    return hashes


@lru_cache(maxsize=4)
def _powers(bits: int, base: int) -> Hashes:
    """base ** i modulo 2 ** 64 for i below 2 ** bits."""
    factors = np.full(1 << bits, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
