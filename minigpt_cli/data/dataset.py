"""A text as token ids on disk: `train.bin`, `val.bin` (and `test.bin`), `tokenizer.json` and `dataset.json`, which is written last.

`dataset.json` carries the size and hash of every other file; what does not match is refused, so a damaged or half-copied
folder is built again rather than trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minigpt_cli.bounds import Count, Figure, Line
from minigpt_cli.config import CLEANING, DataConfig
from minigpt_cli.data.verified import Verified
from minigpt_cli.errors import RunDamaged, TextTooShort, UsageError
from minigpt_cli.runstore.records import FETCHED, Corpus, Fetched, Leak
from minigpt_cli.storage.atomic_io import first_line_of, open_regular, read_bounded, read_json
from minigpt_cli.tokenization.contract import Tokenizer
from minigpt_cli.tokenization.json_format import SIZE_LIMIT
from minigpt_cli.tokenization.pretrained import load_tokenizer

SPLITS = ("train", "val", "test")
RECORD = "dataset.json"
TOKENIZER = "tokenizer.json"

Dtype = Literal["uint16", "uint32"]
Some = Annotated[Count, Field(ge=1)]
Cut = Literal["character", "conversation", "document", "each", "given", "shortened"]  # see splitting.py
IN_ORDER = ("character", "conversation")  # splits follow each other in the text


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SplitRecord(_Record):
    """What dataset.json says of one split."""

    n_documents: Count = 1
    n_tokens: Some
    n_chars: Some
    n_bytes: Some
    text_sha256: Line
    file_sha256: Line


class Origins(_Record):
    """Where the documents of a text come from."""

    kinds: dict[Line, Count] = Field({}, max_length=100)  # characters in files of each kind
    encodings: dict[Line, Count] = Field({}, max_length=100)  # characters in files that are read in each, UTF-8 left out
    skipped: dict[Line, Count] = Field({}, max_length=1000)  # files that were left out, by what they are
    n_duplicates: Count = 0  # documents that repeat another word for word
    shortest: Count = 0  # characters of a document; 0 in old records, which know one text alone
    longest: Count = 0
    shortest_name: Line = ""  # empty in old records
    longest_name: Line = ""
    fetched: list[Fetched] = Field([], max_length=FETCHED)  # what came from the network
    val_from: Line = ""  # the one file or folder that nearly all of the validation text is from, where the training text has others


class DatasetRecord(_Record):
    """The content of dataset.json."""

    schema_version: Literal[1] = 1
    label: Line
    sha256: Line  # of the whole text's UTF-8
    cut: Cut = "character"
    n_documents: Count = 1  # more than one: each ends in END_OF_TEXT, which is a token and no character
    n_chars: Some
    n_bytes: Some
    tokenizer: Line
    tokenizer_sha256: Line  # of tokenizer.json
    vocab_size: Some
    dtype: Dtype
    train_frac: Figure
    test_frac: Figure
    normalize: Line = "off"
    lowercase: bool = False
    ascii_only: bool = False
    max_chars: Count = 0
    key: Line  # of the text and the settings that made these files
    chats: bool | None = None  # whether the text is conversations; None, as in old records: where the label ends in .jsonl
    leak: Leak | None = None  # None: it was not measured, as in old records
    origins: Origins = Origins()
    splits: dict[Literal["train", "val", "test"], SplitRecord]


@dataclass(frozen=True)
class Split:
    """What is trained on, or held back."""

    path: Path
    tokens: np.memmap[tuple[int], np.dtype[np.uint16] | np.dtype[np.uint32]]  # (N,); uint32 for a vocabulary above 65,536
    n_documents: int
    n_chars: int
    n_bytes: int
    sha256: str  # of its UTF-8

    def blocks(self, at_once: int = 1 << 16) -> Iterator[npt.NDArray[Any]]:
        """All tokens in order, so many at once."""
        return token_blocks(self.path, self.tokens.dtype, 0, len(self.tokens), at_once)


@dataclass(frozen=True)
class Dataset:
    """A text cut in two or three and encoded."""

    dir: Path
    label: str
    sha256: str  # of the whole text's UTF-8
    key: str  # of the text and the settings that made these tokens
    cut: Cut
    n_documents: int  # more than one: each ends in END_OF_TEXT
    n_chars: int
    n_bytes: int
    chats: bool  # whether the text is conversations, of which the answers alone are learned
    tokenizer: Tokenizer
    train: Split
    val: Split
    test: Split | None
    leak: Leak | None = None  # how much of the validation text stands in the training text; None: it was not measured
    origins: Origins = field(default_factory=Origins)
    cleaned: Mapping[str, Any] = field(default_factory=dict)  # the settings that changed the characters of the text
    notices: tuple[str, ...] = ()  # what was left out of the text, and how it was split; of the preparation, and not kept

    @property
    def in_documents(self) -> bool:
        """Whether the text is several documents, each with an end of its own."""
        return self.n_documents > 1

    def before(self, name: str) -> Split | None:
        """The split that this one follows in the text, if it does."""
        found = preceding(self.cut, name)
        return None if found is None else self.split(found)

    def split(self, name: str) -> Split:
        """The split of this name. Raises UsageError if there is none."""
        found: Split | None = getattr(self, name) if name in SPLITS else None
        if found is None:
            hint = "make one with --test-frac" if name == "test" else "use train, val or test"
            raise UsageError(f"the data in {self.dir} have no {name!r} split: {hint}")
        return found

    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order of the text."""
        return {name: split for name in SPLITS if (split := getattr(self, name)) is not None}

    def has_splits_of(self, corpus: Corpus) -> bool:
        """Whether its splits are those that a run was trained on: their text, in as many tokens; old records do not say."""
        now = {name: (split.sha256, len(split.tokens)) for name, split in self.splits().items()}
        then = {name: (split.sha256, split.n_tokens) for name, split in corpus.splits.items()}
        return self.sha256 == corpus.sha256 and (not then or now == then)

    def text(self, name: str) -> str:
        """The text of a split."""
        return self.tokenizer.decode(self.split(name).tokens)


def token_blocks(path: Path, dtype: npt.DTypeLike, start: int, count: int, at_once: int = 1 << 16) -> Iterator[npt.NDArray[Any]]:
    """`count` tokens of a file from `start` on, so many at once, read into memory of their own: what a memory map has read counts as
    used memory."""
    with path.open("rb") as file:
        file.seek(start * np.dtype(dtype).itemsize)
        while count and len(block := np.fromfile(file, dtype, min(count, at_once))):
            count -= len(block)
            yield block


def preceding(cut: str, name: str) -> str | None:
    """The split that this one follows in the text; None for the first, and where splits are not cut in order."""
    return {"val": "train", "test": "val"}.get(name) if cut in IN_ORDER else None


def dtype_for(vocab_size: int) -> Dtype:
    """The number type of token files: two bytes a token wherever the ids fit."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def read_record(folder: Path) -> DatasetRecord:
    """What dataset.json says. Raises RunDamaged."""
    try:
        record = DatasetRecord.model_validate(read_json(folder / RECORD))
    except ValidationError as error:
        raise RunDamaged(f"{folder / RECORD} is not a dataset record: {first_line_of(error.errors())}") from error  # type: ignore[arg-type]
    if not {"train", "val"} <= record.splits.keys():
        raise RunDamaged(f"{folder / RECORD} names no train or no val split")
    return record


def open_dataset(folder: Path, record: DatasetRecord | None = None, *, verify: bool = False, just_written: bool = False) -> Dataset:
    """The dataset in `folder`, every file checked against its hash, token files once (see verified.py), with `verify` anew, or not where
    this process has `just_written` them; `record`, where it is read already. Raises RunDamaged."""
    record = record or read_record(folder)
    try:
        json_bytes = read_bounded(folder / TOKENIZER, SIZE_LIMIT)
    except OSError as error:
        raise RunDamaged(f"cannot read {folder / TOKENIZER}: {error.strerror}") from error
    _check(folder / TOKENIZER, hashlib.sha256(json_bytes).hexdigest(), record.tokenizer_sha256)
    try:
        tokenizer = load_tokenizer(json_bytes.decode("utf-8", "replace"), record.tokenizer)
    except UsageError as error:
        raise RunDamaged(f"{folder / TOKENIZER}: {error}") from error
    if tokenizer.vocab_size != record.vocab_size or record.dtype != dtype_for(record.vocab_size):
        raise RunDamaged(f"{folder}: {TOKENIZER} and {RECORD} disagree about the vocabulary")
    verified = Verified(folder, anew=verify, just_written=just_written)
    splits = {name: _open_split(folder / f"{name}.bin", split, record.dtype, verified) for name, split in record.splits.items()}
    verified.save()
    return Dataset(
        dir=folder,
        label=record.label,
        sha256=record.sha256,
        key=record.key,
        cut=record.cut,
        n_documents=record.n_documents,
        n_chars=record.n_chars,
        n_bytes=record.n_bytes,
        chats=record.label.endswith(".jsonl") if record.chats is None else record.chats,
        tokenizer=tokenizer,
        train=splits["train"],
        val=splits["val"],
        test=splits.get("test"),
        leak=record.leak,
        origins=record.origins,
        cleaned={name: value for name in CLEANING if (value := getattr(record, name)) != DataConfig.model_fields[name].default},
    )


def first_tokens(folder: Path, split: Literal["train", "val", "test"], count: int) -> npt.NDArray[np.int64]:
    """At most `count` ids from the beginning of a split; nothing is hashed. Raises RunDamaged."""
    record = read_record(folder)
    size = np.dtype(record.dtype).itemsize
    try:
        with open(open_regular(folder / f"{split}.bin"), "rb") as file:
            data = file.read(count * size)
    except OSError as error:
        raise RunDamaged(f"cannot read {folder / split}.bin: {error.strerror}") from error
    return np.frombuffer(data[: len(data) // size * size], record.dtype).astype(np.int64)


def cached(folder: Path, key: str, *, verify: bool = False) -> Dataset | None:
    """The dataset in `folder` if it is whole and was made from the text and settings of `key`."""
    try:
        record = read_record(folder)
        return open_dataset(folder, record, verify=verify) if record.key == key else None
    except RunDamaged:
        return None


def _open_split(path: Path, record: SplitRecord, dtype: Dtype, verified: Verified) -> Split:
    try:
        with open(open_regular(path), "rb") as file:
            if not verified.has(path.name, file, record.file_sha256):
                _check(path, hashlib.file_digest(file, "sha256").hexdigest(), record.file_sha256)
            tokens = np.memmap(file, dtype=np.dtype(dtype), mode="r")
    except OSError as error:
        raise RunDamaged(f"cannot read {path}: {error.strerror}") from error
    if len(tokens) != record.n_tokens:
        raise RunDamaged(f"{path} has {len(tokens):,} tokens, not {record.n_tokens:,}: delete its folder to build it again")
    return Split(path, tokens, record.n_documents, record.n_chars, record.n_bytes, record.text_sha256)


def _check(path: Path, found: str, promised: str) -> None:
    if found != promised:
        raise RunDamaged(f"{path} is damaged (its hash is not the recorded one): delete its folder to build it again")


def check_long_enough(dataset: Dataset, block_size: int) -> None:
    """Raise TextTooShort unless both splits fill one block and its target."""
    for name, split, fix in (("training", dataset.train, ""), ("validation", dataset.val, " or --train-frac")):
        if len(split.tokens) <= block_size:
            raise TextTooShort(
                f"{len(split.tokens)} {name} tokens cannot fill block_size {block_size} + 1: use more text or a smaller --block-size{fix}"
            )
