"""From documents to memory-mapped token ids: read, count, cut, encode, in bounded memory, cached by content.

The first pass over the documents counts and hashes them and collects their alphabet. If token files for this hash and these
settings exist they are used; a changed text is therefore never trained on stale tokens. Otherwise a second pass encodes split
after split into a folder beside the final one, which is renamed when it is complete; what a killed process left there is gone on with.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from minigpt_cli import registry
from minigpt_cli.bounds import line
from minigpt_cli.config import CLEANING, READING, DataConfig
from minigpt_cli.data import scanned, splitting
from minigpt_cli.data.atomic_folder import Preparing, atomic_folder, put_in_place, watched
from minigpt_cli.data.dataset import RECORD, SPLITS, TOKENIZER, Dataset, DatasetRecord, cached, open_dataset, read_record
from minigpt_cli.data.leak import leak_of
from minigpt_cli.data.origins import origins_of
from minigpt_cli.data.parts import PartKind
from minigpt_cli.data.sources.contract import Document, Source
from minigpt_cli.data.sources.folder import holds_tokens, names_in
from minigpt_cli.data.sources.open_source import check_output, data_folder, open_sources
from minigpt_cli.data.splitting import Splitter
from minigpt_cli.data.text_reader import Counted, Text
from minigpt_cli.data.token_files import PROGRESS, TokenFiles, tokenizer_in, unfinished_in
from minigpt_cli.data.verified import VERIFIED
from minigpt_cli.errors import TextTooShort, UsageError, unknown_name
from minigpt_cli.escaping import file_name
from minigpt_cli.storage.atomic_io import explained, leftovers, write_atomic
from minigpt_cli.tokenization.contract import END_OF_TEXT, Builder, Tokenizer, TrainingText
from minigpt_cli.tokenization.pretrained import load_tokenizer, with_added_tokens, with_characters

_TOGETHER = 1 << 18  # characters of short documents that are encoded together


def prepared(
    config: DataConfig,
    data_dir: Path | None = None,
    on_progress: Callable[[Preparing], None] = lambda _: None,
    *,
    out: Path | None = None,
    source: Source | None = None,
    verify: bool = False,
) -> Dataset:
    """What `prepare` returns, its progress given to `on_progress`."""
    steps = prepare(config, data_dir, out, source, verify=verify)
    while True:
        try:
            on_progress(next(steps))
        except StopIteration as end:
            dataset: Dataset = end.value
            return dataset


def prepare(
    config: DataConfig, data_dir: Path | None = None, out: Path | None = None, source: Source | None = None, *, verify: bool = False
) -> Generator[Preparing, None, Dataset]:
    """The token files of a text, built unless they are there; yields progress.

    They go to `out`, or to a folder of `data_dir` named by content; `source` stands for what config.source names. A text whose files
    are as they were is not read again; with `verify` it is, and token files that are there are hashed anew. Raises UsageError for a
    text that cannot be used and TextTooShort where a split would be empty; nothing is then left behind.
    """
    data_dir = data_dir or data_folder()
    if source is None and (folder := prepared_folder(config)) is not None:
        return _opened(folder, config, out, verify=verify)
    source = source or open_sources(config, data_dir)
    tokenizer_kind = _tokenizer_kind(config)
    _check_out(out)
    check_output(out, config)
    with ExitStack() as stack:
        yield from watched(source.fetch, "downloading")
        first, *more = config.sources if len(config.sources) > 1 else (source.label,)
        name = _slug(first) + f"-and-{len(more)}-more" * bool(more)
        state = scanned.state_of(source, config, tokenizer_kind.identity)
        if state and not verify and (found := scanned.find([out] if out else data_dir.glob(f"{name}-*"), state)):
            return replace(found, label=line(source.label))
        text = Text(source, config)
        yield from text.scan()
        splitter = Splitter(text, config)
        if config.new_characters:
            tokenizer_kind = tokenizer_kind.extended(text)
        key = _key(config, text, splitter, tokenizer_kind)
        chat = "" if source.split_by == "character" else "chat-"
        target = out or data_dir / f"{name}-{chat}{_slug(tokenizer_kind.name)}-{key[:12]}"
        if (found := cached(target, key, verify=verify)) is None:
            folder = stack.enter_context(atomic_folder(target.parent, key[:16], keep=PROGRESS))
            yield from _build(folder, config, text, splitter, tokenizer_kind, key)
            put_in_place(folder, target, lambda there: cached(there, key) is not None)
            found = open_dataset(target, just_written=True)
        found = replace(
            found,
            label=line(source.label),
            origins=origins_of(text, splitter),
            notices=(*source.notices, *text.cleaning.notices, *splitter.notices(), *_shortened(config, found), *tokenizer_kind.notices),
        )
        scanned.keep(found, state)
        return found


def prepared_folder(config: DataConfig) -> Path | None:
    """The folder of token files that the source is, as `tokenize` writes them; None where it is a text."""
    folder = Path(config.sources[0]).expanduser() if len(config.sources) == 1 and config.sources[0] else None
    return folder if folder is not None and folder.is_dir() and holds_tokens(names_in(folder)) else None


def _opened(folder: Path, config: DataConfig, out: Path | None, *, verify: bool) -> Dataset:
    """The dataset in `folder`. Raises UsageError where flags ask for other tokens or splits than it has, RunDamaged if it is not whole."""
    if out is not None:
        raise UsageError(f"{folder} holds token files already: leave out --out, or give the text itself")
    if config.val or config.test:
        raise UsageError(f"{folder} holds token files, split already: leave out --val and --test, or give the text itself")
    dataset = open_dataset(folder, record := read_record(folder), verify=verify)
    changed = [name for name in _MADE_WITH if getattr(config, name) != DataConfig.model_fields[name].default]
    if config.new_characters and config.tokenizer not in registry.TOKENIZERS:
        changed.remove("tokenizer")  # that of --init-from, which nobody asked for: its rows are matched to these tokens by their text
    _check_made_with(folder, record, config, changed)
    ignored = [f"--{name.replace('_', '-')}" for name in READING if getattr(config, name) != DataConfig.model_fields[name].default]
    if ignored:
        said = f"{folder} holds token files, made already: {' and '.join(ignored)} do{'es' * (len(ignored) == 1)} nothing"
        return replace(dataset, notices=(said,))
    return dataset


_MADE_WITH = ("tokenizer", "train_frac", "test_frac", *CLEANING, "max_chars")


def check_prepared(config: DataConfig, asked: Collection[str]) -> None:
    """Raise UsageError where the source is token files, and a setting that was `asked` for is not theirs, if only the usual one."""
    if asked and (folder := prepared_folder(config)) is not None:
        _check_made_with(folder, read_record(folder), config, [name for name in _MADE_WITH if name in asked])


def _check_made_with(folder: Path, record: DatasetRecord, config: DataConfig, names: Iterable[str]) -> None:
    for name in names:
        value, made = getattr(config, name), getattr(record, name)
        if value != made:
            flag = "--" + "no-" * (value is False) + name.replace("_", "-") + f" {value}" * (not isinstance(value, bool))
            raise UsageError(f"{folder} holds token files made with {name} {made}: leave out {flag}, or give the text itself")


@dataclass(frozen=True)
class _TokenizerKind:
    """How the tokenizer is made, and all that its making depends on."""

    name: str
    identity: dict[str, Any]
    build: Callable[[DataConfig, TrainingText], Tokenizer]
    made: Tokenizer | None = None  # where it is read from a file
    notices: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, *notices: str) -> _TokenizerKind:
        """A tokenizer that is made already."""
        identity = {"json": hashlib.sha256(tokenizer.to_json().encode("utf-8")).hexdigest()}
        return cls(tokenizer.name, identity, lambda config, corpus: tokenizer, tokenizer, notices)

    def extended(self, text: Text) -> _TokenizerKind:
        """The same; a character tokenizer from a file with the characters of `text` that it lacks."""
        if self.made is None:
            return self
        tokenizer, what = with_characters(self.made, text.alphabet)
        return self.of(tokenizer, f"the vocabulary is extended by {what}") if what else self


def _tokenizer_kind(config: DataConfig) -> _TokenizerKind:
    """What `--tokenizer` names: a registered name, else a file or folder. Raises UsageError."""
    name = config.tokenizer
    if name in registry.TOKENIZERS:
        builder: Builder = registry.load("tokenizer", name)
        identity = {"name": name} | {field: getattr(config, field) for field in builder.settings}
        if builder.edition > 1:
            identity["edition"] = builder.edition
        return _TokenizerKind(name, identity, builder.build)
    check_tokenizer(config)
    return _TokenizerKind.of(load_tokenizer(Path(name)))


def check_tokenizer(config: DataConfig) -> None:
    """Raise UsageError where `--tokenizer` names neither a tokenizer nor a file or folder."""
    name, path = config.tokenizer, Path(config.tokenizer)
    with suppress(OSError):  # a name that is too long for a file
        if name in registry.TOKENIZERS or path.exists():
            return
    if path.parent == Path() and not path.suffix:
        raise unknown_name("tokenizer", name, registry.TOKENIZERS)
    raise UsageError(f"no tokenizer file {name}: give a tokenizer.json or .model, or one of {', '.join(registry.TOKENIZERS)}")


def _build(
    folder: Path, config: DataConfig, text: Text, splitter: Splitter, tokenizer_kind: _TokenizerKind, key: str
) -> Generator[Preparing, None, None]:
    """Write the files of a dataset into `folder`, its record last."""
    found = unfinished_in(folder, key)
    tokenizer = tokenizer_in(folder, found.progress) if found else (yield from _made(config, text, splitter, tokenizer_kind))
    end = END_OF_TEXT if text.many else None
    splits = {name: Counted(end) for name in splitter.names}
    files = TokenFiles(folder, key, tokenizer, splits, found)
    with explained("write"), files.opened():
        for batch, (name, pieces) in enumerate(_gathered(splitter.parts(), splits)):
            for _ in files.encode(name, batch, pieces, tokenizer):
                yield Preparing(sum(counted.n_bytes for counted in splits.values()), text.n_bytes, "encoding")
    for name, counted in splits.items():
        if not counted.n_learned:
            of, more = ("the answers in ", "conversations") if splitter.cut == "conversation" else ("", "text")
            raise TextTooShort(f"there is no text in {of}the {name} split of {text.name}, so none can be scored: use more {more}")
    kind: PartKind | None = "answers" if splitter.cut == "conversation" else "documents" if text.many else None
    whole = splitter.cut in ("document", "given")  # else a split has a part of each document
    n_documents = (sum if whole else max)(counted.n_documents for counted in splits.values())
    n_trained = splits["train"].n_documents if splitter.cut == "conversation" else splits["train"].n_chars
    shortened = splitter.in_order and n_trained < splitter.lengths["train"]
    record = DatasetRecord(
        key=key,
        label=line(text.source.label),
        sha256=text.sha256,
        cut="shortened" if shortened else splitter.cut,
        n_documents=n_documents if text.many else 1,
        n_chars=sum(counted.n_chars for counted in splits.values()),
        n_bytes=sum(counted.n_bytes for counted in splits.values()),
        tokenizer=tokenizer.name,
        tokenizer_sha256=files.tokenizer_sha256,
        vocab_size=tokenizer.vocab_size,
        dtype=files.dtype,
        train_frac=config.train_frac,
        test_frac=config.test_frac,
        **{name: getattr(config, name) for name in (*CLEANING, "max_chars")},
        chats=text.source.split_by == "conversation",
        leak=leak_of(folder / "train.bin", folder / "val.bin", files.dtype, tokenizer, kind),
        origins=origins_of(text, splitter),
        splits={name: counted.record() for name, counted in splits.items()},
    )
    write_atomic(folder / RECORD, record.model_dump_json(indent=1))


def _gathered(parts: Iterable[tuple[str, Document]], splits: Mapping[str, Counted]) -> Iterator[tuple[str, Iterator[str]]]:
    """The text of each split, many short documents at a time, a long one alone; whole documents, which are encoded as they stand."""
    waiting: dict[str, list[str]] = defaultdict(list)
    sizes = dict.fromkeys(splits, 0)
    for name, document in parts:
        pieces = splits[name].passing(document)
        for piece in pieces:
            waiting[name].append(piece)
            sizes[name] += len(piece)
            if sizes[name] >= _TOGETHER:
                yield name, chain(waiting.pop(name), pieces)
                sizes[name] = 0
    for name, rest in waiting.items():
        yield name, iter(rest)


def _made(config: DataConfig, text: Text, splitter: Splitter, tokenizer_kind: _TokenizerKind) -> Generator[Preparing, None, Tokenizer]:
    """The tokenizer, learned from the training split if it learns at all, with the marks of the text."""
    train_bytes = int(text.n_bytes * splitter.train_share)

    def work(report: Callable[[int, int | None], None]) -> Tokenizer:
        def train_text() -> Iterator[str]:
            done = 0
            for name, document in splitter.parts():
                if name != "train":
                    if splitter.in_order:
                        return
                    continue
                for piece in document.pieces:
                    if piece.text not in text.marks:
                        yield piece.text
                    elif text.many:
                        yield "\n"  # so that nothing is learned across the end of a document
                    report(done := done + len(piece.utf8), train_bytes)

        return tokenizer_kind.build(config, TrainingText(text.alphabet, train_bytes, train_text))

    tokenizer = yield from watched(work, "learning tokens from")
    return with_added_tokens(tokenizer, text.marks)


def _key(config: DataConfig, text: Text, splitter: Splitter, tokenizer_kind: _TokenizerKind) -> str:
    """The hash of all that the token files depend on."""
    parts: dict[str, Any] = {"format": 1, "text": text.sha256, "tokenizer": tokenizer_kind.identity}
    if splitter.cut == "conversation":
        parts |= {"chat": 1, "splits": splitter.lengths}
    else:
        parts |= {"train_frac": config.train_frac, "test_frac": config.test_frac}
    if text.many or splitter.cut == "given":
        parts["cut"] = splitter.cut
    if splitter.cut == "given":
        parts["splits"] = splitter.lengths
    asked = {name: getattr(config, name) for name in ("normalize", "lowercase", "max_chars")}
    parts |= {name: value for name, value in asked.items() if value != DataConfig.model_fields[name].default}
    if config.max_chars >= 2 * splitting.STRETCH and splitter.cut != "conversation":
        parts["stretch"] = splitting.STRETCH
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def _shortened(config: DataConfig, found: Dataset) -> list[str]:
    """What --max-chars did."""
    if not config.max_chars:
        return []
    first = found.chats or found.train.n_chars < 2 * splitting.STRETCH
    used = f"the training text is {'its first ' * first}{found.train.n_chars:,} characters{' from all over it' * (not first)}"
    if found.in_documents:
        used += f", of {found.train.n_documents:,} document{'s' * (found.train.n_documents > 1)}"
    return [used + ", fewer than --max-chars" * (found.train.n_chars < config.max_chars)]


def _check_out(out: Path | None) -> None:
    """Raise UsageError if `--out` names something that must not be replaced."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a folder")
    ours = {RECORD, TOKENIZER, VERIFIED, scanned.SCANNED, *(f"{name}.bin" for name in SPLITS)}
    if not {path.name for path in out.iterdir() if str(path) not in leftovers(out)} <= ours:
        raise UsageError(f"--out {out} holds other files: name a new or empty folder")


def _slug(label: str) -> str:
    """A short, plain file name for a label."""
    return file_name(Path(label).stem if label != "-" else "stdin", 40)
