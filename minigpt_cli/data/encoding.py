"""From documents to memory-mapped token ids: read, count, cut, encode, in bounded memory, cached by content.

The first pass over the documents counts and hashes them and collects their alphabet. If token files for this hash and these
settings exist they are used; a changed text is therefore never trained on stale tokens. Otherwise a second pass encodes split
after split into a folder beside the final one, which is renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any

from minigpt_cli import registry
from minigpt_cli.bounds import line
from minigpt_cli.config import DataConfig
from minigpt_cli.data.atomic_folder import Preparing, atomic_folder, put_in_place, watched
from minigpt_cli.data.dataset import RECORD, SPLITS, TOKENIZER, Dataset, DatasetRecord, cached, dtype_for, open_dataset
from minigpt_cli.data.sources.contract import Source
from minigpt_cli.data.sources.open_source import data_folder, open_source
from minigpt_cli.data.text_reader import Counted, Cutter, Text
from minigpt_cli.errors import TextTooShort, UsageError, unknown_name
from minigpt_cli.escaping import file_name
from minigpt_cli.storage.atomic_io import explained, write_atomic
from minigpt_cli.tokenization.contract import Builder, Tokenizer, TrainingText
from minigpt_cli.tokenization.pretrained import load_tokenizer, with_added_tokens


def prepared(
    config: DataConfig,
    data_dir: Path | None = None,
    on_progress: Callable[[Preparing], None] = lambda _: None,
    *,
    out: Path | None = None,
    source: Source | None = None,
) -> Dataset:
    """What `prepare` returns, its progress given to `on_progress`."""
    steps = prepare(config, data_dir, out, source)
    while True:
        try:
            on_progress(next(steps))
        except StopIteration as end:
            dataset: Dataset = end.value
            return dataset


def prepare(
    config: DataConfig, data_dir: Path | None = None, out: Path | None = None, source: Source | None = None
) -> Generator[Preparing, None, Dataset]:
    """The token files of a text, built unless they are there; yields progress.

    They go to `out`, or to a folder of `data_dir` named by content; `source` stands for what config.source names. Raises
    UsageError for a text that cannot be used and TextTooShort where a split would be empty; nothing is then left behind.
    """
    data_dir = data_dir or data_folder()
    source = source or open_source(config.source, data_dir, config)
    tokenizer_kind = _tokenizer_kind(config)
    _check_out(out)
    with ExitStack() as stack:
        yield from watched(source.fetch, "downloading")
        text = Text(source, config.ascii_only)
        yield from text.scan()
        lengths = _lengths(config, text)
        key = _key(config, text, lengths, tokenizer_kind)
        chat = "" if source.split_by == "character" else "chat-"
        target = out or data_dir / f"{_slug(source.label)}-{chat}{_slug(tokenizer_kind.name)}-{key[:12]}"
        if (found := cached(target, key)) is None:
            folder = stack.enter_context(atomic_folder(target.parent))
            yield from _build(folder, config, text, lengths, tokenizer_kind, key)
            put_in_place(folder, target, lambda there: cached(there, key) is not None)
            found = open_dataset(target)
        return replace(found, label=line(source.label))


@dataclass(frozen=True)
class _TokenizerKind:
    """How the tokenizer is made, and all that its making depends on."""

    name: str
    identity: dict[str, Any]
    build: Callable[[DataConfig, TrainingText], Tokenizer]


def _tokenizer_kind(config: DataConfig) -> _TokenizerKind:
    """What `--tokenizer` names: a registered name, else a file or folder. Raises UsageError."""
    name = config.tokenizer
    if name in registry.TOKENIZERS:
        builder: Builder = registry.load("tokenizer", name)
        return _TokenizerKind(name, {"name": name} | {field: getattr(config, field) for field in builder.settings}, builder.build)
    path = Path(name)
    if not path.exists():
        if path.parent == Path() and not path.suffix:
            raise unknown_name("tokenizer", name, registry.TOKENIZERS)
        raise UsageError(f"no tokenizer file {name}: give a tokenizer.json, or one of {', '.join(registry.TOKENIZERS)}")
    tokenizer = load_tokenizer(path)
    identity = {"json": hashlib.sha256(tokenizer.to_json().encode("utf-8")).hexdigest()}
    return _TokenizerKind(tokenizer.name, identity, lambda config, corpus: tokenizer)


def _lengths(config: DataConfig, text: Text) -> dict[str, int]:
    """How much of the text each split has. Raises TextTooShort if one would have nothing."""
    train, test = floor(text.length * config.train_frac), floor(text.length * config.test_frac)
    lengths = {"train": train, "val": text.length - train - test} | ({"test": test} if config.test_frac else {})
    for name, length in lengths.items():
        if not length:
            units = f"{text.length} {text.source.split_by}{'s' * (text.length != 1)}"
            raise TextTooShort(f"{text.name} has {units}, which leaves none for the {name} split: use more text")
    return lengths


def _build(
    folder: Path, config: DataConfig, text: Text, lengths: dict[str, int], tokenizer_kind: _TokenizerKind, key: str
) -> Generator[Preparing, None, None]:
    """Write the files of a dataset into `folder`, its record last."""
    tokenizer = yield from _made(config, text, lengths["train"], tokenizer_kind)
    dtype = dtype_for(tokenizer.vocab_size)
    json_text = tokenizer.to_json()
    write_atomic(folder / TOKENIZER, json_text)
    cutter = Cutter(text)
    splits: dict[str, Counted] = {}
    for name in SPLITS[: len(lengths)]:
        done = sum(split.n_bytes for split in splits.values())
        counted = splits[name] = Counted()
        with explained("write"), (folder / f"{name}.bin").open("wb") as file:
            for document in cutter.take(lengths[name]):
                for ids in tokenizer.encode_stream(counted.passing(document)):
                    data = ids.astype(dtype).tobytes()
                    file.write(data)
                    counted.written(data, len(ids))
                    yield Preparing(done + counted.n_bytes, text.n_bytes, "encoding")
    cutter.check_end()
    for name, counted in splits.items():
        if not counted.n_learned:
            raise TextTooShort(
                f"the answers in the {name} split of {text.name} hold no text, so none can be scored: use more conversations"
            )
    record = DatasetRecord(
        key=key,
        label=line(text.source.label),
        sha256=text.sha256,
        n_chars=text.n_chars,
        n_bytes=text.n_bytes,
        tokenizer=tokenizer.name,
        tokenizer_sha256=hashlib.sha256(json_text.encode("utf-8")).hexdigest(),
        vocab_size=tokenizer.vocab_size,
        dtype=dtype,
        train_frac=config.train_frac,
        test_frac=config.test_frac,
        splits={name: counted.record() for name, counted in splits.items()},
    )
    write_atomic(folder / RECORD, record.model_dump_json(indent=1))


def _made(config: DataConfig, text: Text, train_length: int, tokenizer_kind: _TokenizerKind) -> Generator[Preparing, None, Tokenizer]:
    """The tokenizer, learned from the training split if it learns at all, with the marks of the source."""
    train_bytes = text.n_bytes * train_length // text.length

    def work(report: Callable[[int, int | None], None]) -> Tokenizer:
        def train_text() -> Iterator[str]:
            done = 0
            for document in Cutter(text).take(train_length):
                for piece, _ in document.pieces:
                    if piece not in text.source.marks:
                        yield piece
                    report(done := done + len(piece.encode("utf-8")), train_bytes)

        return tokenizer_kind.build(config, TrainingText(text.alphabet, train_bytes, train_text))

    tokenizer = yield from watched(work, "learning tokens from")
    return with_added_tokens(tokenizer, text.source.marks)


def _key(config: DataConfig, text: Text, lengths: dict[str, int], tokenizer_kind: _TokenizerKind) -> str:
    """The hash of all that the token files depend on."""
    parts: dict[str, Any] = {"format": 1, "text": text.sha256, "tokenizer": tokenizer_kind.identity}
    if text.source.split_by == "character":
        parts |= {"train_frac": config.train_frac, "test_frac": config.test_frac}
    else:
        parts |= {"chat": 1, "splits": lengths}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def _check_out(out: Path | None) -> None:
    """Raise UsageError if `--out` names something that must not be replaced."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a folder")
    ours = {RECORD, TOKENIZER, *(f"{name}.bin" for name in SPLITS)}
    if not {path.name for path in out.iterdir()} <= ours:
        raise UsageError(f"--out {out} holds other files: name a new or empty folder")


def _slug(label: str) -> str:
    """A short, plain file name for a label."""
    return file_name(Path(label).stem if label != "-" else "stdin", 40)
