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

import numpy as np
import numpy.typing as npt

from minigpt_cli.data.dataset import Dtype, token_blocks
from minigpt_cli.data.parts import LearnedText, PartKind
from minigpt_cli.runstore.records import Leak
from minigpt_cli.tokenization.char import code_points
from minigpt_cli.tokenization.contract import Tokenizer

RUN = Leak.run
SAMPLE, STRETCH = 1 << 19, 1 << 10  # tokens of the validation text, and of each of the stretches that a sample has
TRAINING, READ = 1 << 27, 1 << 20  # the same of the training text: three seconds or so
MATTERS = 0.01  # of the validation text. This much lowers a score by up to 1 %, about as much as runs of other seeds differ by

Hashes = npt.NDArray[np.uint64]
_BASE, _MIX = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd
_TABLE_BITS = 26


def leak_of(train: Path, val: Path, dtype: Dtype, tokenizer: Tokenizer, kind: PartKind | None) -> Leak:
    """How much of the tokens in the file `val` those in `train` hold; of answers or documents as they are learned."""
    reader = LearnedText(tokenizer, kind)
    n_train, n_val = (path.stat().st_size // np.dtype(dtype).itemsize for path in (train, val))

    def learned(path: Path, n: int, most: int, stretch: int) -> Iterator[Iterator[str]]:
        """All of a file's `n` tokens, or stretches from all over them, `most` in all; read like this, since a memory map counts as used."""
        starts = [0] if n <= most else np.linspace(0, n - stretch, most // stretch).astype(np.int64).tolist()
        for start in starts:
            yield reader.pieces(token_blocks(path, dtype, start, n if n <= most else stretch), "replace")

    texts = ["".join(pieces) for pieces in learned(val, n_val, SAMPLE, STRETCH)]
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


def verbatim(texts: Sequence[str], training: Iterable[Iterable[str]], run: int = RUN) -> npt.NDArray[np.bool_]:
    """Which characters of `texts`, in order, stand in a run of `run` characters of their text that occurs in one of the training texts,
    each given in pieces, (n_chars,)."""
    windows = [_hashes(code_points(text), run) for text in texts]
    known = np.unique(np.concatenate([*windows, np.empty(0, np.uint64)]))
    found = np.zeros(len(known), np.bool_)
    bits = min(_TABLE_BITS, max(1, (32 * len(known)).bit_length()))
    shift = np.uint64(64 - bits)
    may_be_known = np.zeros(1 << bits, np.bool_)  # by the first bits of a hash, since a search takes longer
    may_be_known[(known >> shift).astype(np.int64)] = True
    for hashes in _hashes_of_pieces(training, run):
        candidates = hashes[may_be_known[(hashes >> shift).astype(np.int64)]]
        at = np.minimum(np.searchsorted(known, candidates), len(known) - 1)
        found[at[known[at] == candidates]] = True
        if found.all():
            break
    covered = [_covered(found[np.searchsorted(known, own)], len(text), run) for text, own in zip(texts, windows, strict=True)]
    return np.concatenate([np.empty(0, np.bool_), *covered])


def _covered(begins: npt.NDArray[np.bool_], n_chars: int, run: int) -> npt.NDArray[np.bool_]:
    """Which of `n_chars` characters lie in a window of `run` that begins where `begins` says."""
    change = np.zeros(n_chars + 1, np.int64)
    starts = np.flatnonzero(begins)
    change[starts] += 1
    np.subtract.at(change, starts + run, 1)
    return np.cumsum(change[:-1]) > 0


def _hashes_of_pieces(training: Iterable[Iterable[str]], run: int) -> Iterator[Hashes]:
    """The hashes of all windows of texts that are given in pieces."""
    for pieces in training:
        before = np.empty(0, np.uint32)
        for piece in pieces:
            points = np.concatenate([before, code_points(piece)])
            before = points[max(0, len(points) - run + 1) :]
            yield _hashes(points, run)


def _hashes(points: npt.NDArray[np.uint32], run: int) -> Hashes:
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
