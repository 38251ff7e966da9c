"""What a dataset holds, for a person who looks before training: documents, alphabet, windows, and what is poor about it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.data.dataset import Dataset, Split
from minigpt_cli.tokenization.char import code_points
from minigpt_cli.tokenization.contract import END_OF_TEXT, Spelling

RARE = 10  # a character that occurs less often than this is rare
_MANY_RARE = 500
_LITTLE = 0.01  # of the text
_WINDOWS, _WINDOW = 3, 120  # how many are shown, and their tokens


@dataclass(frozen=True)
class Preview:
    """What `tokenize` shows of a dataset besides its counts."""

    documents: dict[str, int]  # by split
    shortest: int  # characters of a document
    longest: int
    shortest_name: str  # where the document stands; empty where token files do not say
    longest_name: str
    alphabet: int  # different characters
    rare: list[str]  # characters that occur less than RARE times, the most frequent first
    scripts: dict[str, float]  # share of the letters by script, the largest first
    kinds: dict[str, float]  # share of the characters that are in files of each kind
    duplicates: int  # documents that repeat another word for word
    windows: list[str]  # as the model reads them
    warnings: list[str]


def preview(dataset: Dataset, seed: int = 0) -> Preview:
    """Read the token files of `dataset` once; the windows are drawn from `seed`."""
    counts = _counted(dataset)
    points = np.flatnonzero(counts)
    rare = sorted((int(p) for p in points if counts[p] < RARE), key=lambda p: (-counts[p], p))
    scripts: Counter[str] = Counter()
    for point in points.tolist():
        if (character := chr(point)).isalpha():
            script = unicodedata.name(character, "unknown").split()[0]
            scripts[script if script == "CJK" else script.title()] += int(counts[point])
    letters = max(1, scripts.total())
    return Preview(
        documents={name: split.n_documents for name, split in dataset.splits().items()},
        shortest=dataset.origins.shortest or dataset.n_chars,
        longest=dataset.origins.longest or dataset.n_chars,
        shortest_name=dataset.origins.shortest_name,
        longest_name=dataset.origins.longest_name,
        alphabet=len(points),
        rare=[chr(p) for p in rare],
        scripts={name: n / letters for name, n in scripts.most_common()},
        kinds={kind: n / max(1, sum(dataset.origins.kinds.values())) for kind, n in dataset.origins.kinds.items()},
        duplicates=dataset.origins.n_duplicates,
        windows=_windows(dataset, np.random.default_rng(seed)),
        warnings=_warnings(dataset, len(rare), len(points)),
    )


def _counted(dataset: Dataset) -> npt.NDArray[np.int64]:
    """How often each code point occurs, (0x110000,)."""
    tokens = dataset.tokenizer.token_bytes()
    texts = ["" if dataset.in_documents and token == END_OF_TEXT.encode() else _whole(token) for token in tokens]
    is_part = np.array([text is None for text in texts])
    uses, spelling, counts = np.zeros(len(tokens), np.int64), Spelling(tokens), np.zeros(0x110000, np.int64)

    def parts(split: Split) -> Iterator[npt.NDArray[Any]]:
        """The tokens that are parts of characters; those between two whole ones spell whole characters together."""
        for block in split.blocks():
            np.add(uses, np.bincount(block, minlength=len(uses)), out=uses)
            yield block[is_part[block]] if is_part.any() else block[:0]

    for split in dataset.splits().values():
        for text in spelling.pieces(parts(split), "replace"):
            np.add.at(counts, code_points(text), 1)
    np.add.at(counts, code_points("".join(filter(None, texts))), np.repeat(uses, [len(text or "") for text in texts]))
    return counts


def _whole(token: bytes) -> str | None:
    """The text of a token; None where it begins or ends inside a character."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _windows(dataset: Dataset, generator: np.random.Generator) -> list[str]:
    tokens = dataset.train.tokens
    starts = generator.integers(0, max(1, len(tokens) - _WINDOW), _WINDOWS)
    return [dataset.tokenizer.decode(tokens[start : start + _WINDOW]) for start in starts.tolist()]


def _warnings(dataset: Dataset, n_rare: int, n_characters: int) -> list[str]:
    found = []
    if dataset.tokenizer.name == "char" and n_rare >= _MANY_RARE:
        found.append(
            f"{n_rare:,} of {n_characters:,} characters occur less than {RARE} times: --tokenizer bpe or byte would learn them better"
        )
    if dataset.origins.val_from:
        found.append(
            f"nearly all of the validation text is from {dataset.origins.val_from}, and the training text has others too: "
            "the score says little about those; choose with --val, or use more documents"
        )
    if dataset.cut in ("document", "given") and dataset.in_documents and dataset.val.n_documents < 5:
        few = f"only {dataset.val.n_documents} document{'s' * (dataset.val.n_documents > 1)} to validate on"
        found.append(f"{few}: the score depends on which they are; see --train-frac and --val")
    elif dataset.cut == "document" and (share := dataset.val.n_chars / dataset.n_chars) < _LITTLE:
        found.append(
            f"only {share:.1%} of the characters are to validate on, since the documents differ in length: see --train-frac and --val"
        )
    return found
