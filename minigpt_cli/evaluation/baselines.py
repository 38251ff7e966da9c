"""Baselines without a neural network, which a model should beat, in nats per character. No torch.

uniform  every character of the training text is equally likely
unigram  character frequencies of the training text; every count is increased by one, and all unseen characters together count as one
bigram   counts of character pairs in the training text, with Witten & Bell (1991) smoothing towards the unigram
xz       what `xz -9` adds for the text after the training text: like a model, it has read the training text
xz_alone what `xz -9` needs for the text alone
"""

from __future__ import annotations

import json
import lzma
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minigpt_cli.bounds import NATS_LIMIT
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation.cache import FOLDER, make_folder
from minigpt_cli.storage.atomic_io import read_json, write_atomic

TRAINING_CHARS = 1 << 25  # of a longer training text only the end is used (xz -9 looks back 64 MiB)
_VERSION = 1

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Baselines:
    """Nats per character of the text under each."""

    uniform: float
    unigram: float
    bigram: float
    xz: float
    xz_alone: float


def baselines(training: str, text: str, *, n_chars: int = 0) -> Baselines:
    """What `text` costs after `training`, divided by its characters or by `n_chars`; the text follows the last character of `training`."""
    n_chars = n_chars or len(text)
    training = training[-TRAINING_CHARS:]
    with ThreadPoolExecutor(3) as pool:  # lzma works outside the interpreter's lock
        sizes = [pool.submit(_xz_bytes, part.encode()) for part in (training, training + text, text)]
        counted = count_baselines(training, text)
        before, both, alone = (size.result() for size in sizes)
    per_char = 8 * math.log(2) / n_chars
    uniform, unigram, bigram = (nats * len(text) / n_chars for nats in counted)
    return Baselines(uniform, unigram, bigram, xz=max(0, both - before) * per_char, xz_alone=alone * per_char)


def _xz_bytes(data: bytes) -> int:
    """Bytes of `data` after `xz -9`. The window is as long as the data: same result without the 674 MB of a 64 MiB window."""
    window = min(max(len(data), 4096), 1 << 26)
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]))


def count_baselines(training: str, text: str) -> tuple[float, float, float]:
    """Uniform, unigram and bigram nats per character of `text`, fitted on `training`."""
    uniform, unigram, bigram = (float(nats.mean()) for nats in counted_nats(training, text))
    return uniform, unigram, bigram


def counted_nats(training: str, text: str) -> tuple[Floats, Floats, Floats]:
    """Nats of every character of `text`, (n_chars,): uniform, unigram and bigram, fitted on `training`, which comes before."""
    known, seen = np.unique(_points(training), return_inverse=True)  # (K,), (n_training,)
    size = len(known) + 1  # the last stands for every unseen character
    coded = np.searchsorted(known, points := _points(text))
    unseen = known[np.minimum(coded, len(known) - 1)] != points if len(known) else np.ones(len(points), dtype=bool)
    coded = np.where(unseen, size - 1, coded)
    unigram = (np.bincount(seen, minlength=size) + 1) / (len(seen) + size)  # (K + 1,)
    previous = np.concatenate([seen[-1:] if len(seen) else [size - 1], coded[:-1]])
    bigram = _witten_bell(seen, previous, coded, unigram)
    return np.full(len(coded), math.log(size)), -np.log(unigram[coded]), -np.log(bigram)


def _witten_bell(seen: Codes, previous: Codes, following: Codes, unigram: Floats) -> Floats:
    """P(following | previous) = (pairs + kinds * unigram) / (all + kinds), where `kinds` counts the different characters that followed."""
    size = len(unigram)
    pairs, counts = np.unique(seen[:-1] * size + seen[1:], return_counts=True)
    all_after = np.bincount(pairs // size, weights=counts, minlength=size)[previous]
    kinds_after = np.bincount(pairs // size, minlength=size)[previous]
    wanted = previous * size + following
    at = np.searchsorted(pairs, wanted)
    at = np.minimum(at, max(0, len(pairs) - 1))
    count = np.where(pairs[at] == wanted, counts[at], 0) if len(pairs) else np.zeros(len(wanted))
    smoothed = (count + kinds_after * unigram[following]) / np.maximum(1, all_after + kinds_after)
    return np.where(all_after > 0, smoothed, unigram[following])


def _points(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)


def kept_path(run_dir: Path, training_sha256: str, text_sha256: str) -> Path:
    """Where the baselines of these two texts are kept."""
    return run_dir / FOLDER / f"baselines-{training_sha256[:16]}-{text_sha256[:16]}-{_VERSION}.json"


def find_kept(path: Path) -> Baselines | None:
    """Baselines computed before, or None."""
    try:
        found = Baselines(**read_json(path))
    except (MiniGPTError, TypeError):
        return None
    return found if all(isinstance(x, float) and 0 <= x <= NATS_LIMIT for x in asdict(found).values()) else None


def keep(path: Path, found: Baselines) -> None:
    """Store baselines. Raises MiniGPTError if they cannot be written."""
    make_folder(path.parent)
    write_atomic(path, json.dumps(asdict(found)) + "\n")
