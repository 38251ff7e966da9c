"""What a person typed, as a source."""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from minigpt_cli import registry
from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Source, SplitBy, SplitName
from minigpt_cli.data.sources.corpora import EMBEDDED, named_corpus
from minigpt_cli.data.sources.files import File, Stream
from minigpt_cli.data.sources.folder import files_below, holds_tokens, model_in, names_in
from minigpt_cli.data.sources.hub import dataset_files
from minigpt_cli.data.sources.spool import Spool
from minigpt_cli.data.sources.texts import Files, not_together
from minigpt_cli.data.sources.token_folder import TokenFolder
from minigpt_cli.data.sources.urls import downloaded, is_url
from minigpt_cli.errors import UsageError, unknown_name
from minigpt_cli.runstore.records import Fetched
from minigpt_cli.storage.downloads import Report
from minigpt_cli.storage.hub import PREFIX


def data_folder() -> Path:
    """Where texts and token files live: MINIGPT_DATA_DIR, or ./data."""
    return Path(os.environ.get("MINIGPT_DATA_DIR") or "data")


def open_source(source: str | Sequence[str], data_dir: Path | None = None, options: DataConfig | None = None) -> Source:
    """What `source` names, several one after the other, read as `options` say; empty: input.txt in the data folder if it is there, else
    python-docs. Raises UsageError."""
    options = options or DataConfig()
    if not isinstance(source, str):
        if source.count("-") > 1:
            raise UsageError("standard input can be read only once: give '-' only once")
        opened = [open_source(one, data_dir, options) for one in source or [""]]
        return opened[0] if len(opened) == 1 else Several(opened)
    if source == "":
        default = (data_dir or data_folder()) / "input.txt"
        return open_path(default, str(default), options) if default.exists() else named_corpus(EMBEDDED)
    if source == "-":
        stdin = Stream("standard input", Path(), Spool(lambda: nullcontext(sys.stdin.buffer)))
        return Files("-", lambda report: [stdin], options)
    if is_url(source):
        return Files(source, lambda report: [downloaded(source, report)], options)
    if source.startswith(PREFIX):
        return Files(source, lambda report: dataset_files(source, report), options)
    if source in registry.CORPORA and not Path(source).is_file():
        return named_corpus(source)
    return open_path(Path(source), source, options)


def check_output(out: Path | None, options: DataConfig) -> None:
    """Raise UsageError if what is written would replace a source."""
    for source in (*options.sources, *options.val, *options.test):
        path = Path(source).expanduser()
        if out is not None and source and path.exists() and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise UsageError(f"--out {out} would replace the source {source}: name another folder")


def _names_like(path: Path) -> list[str]:
    """The files and folders beside `path` whose names are nearly its name, as they are typed."""
    try:
        return [repr(str(path.with_name(name))) for name in get_close_matches(path.name, names_in(path.parent), n=2, cutoff=0.7)]
    except UsageError:
        return []


def open_path(path: Path, label: str, options: DataConfig) -> Source:
    """The documents of a file, pipe or folder. Raises UsageError if there is none, or a model where a text was meant."""
    try:
        path = path.expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UsageError(f"{label} is a link to {os.readlink(path)}, which is not there: give the file itself") from None
        if path.parent == Path() and not path.suffix:  # looks like a name
            raise unknown_name("file, folder or corpus", label, registry.CORPORA) from None
        if near := _names_like(path):
            raise UsageError(f"no file or folder {label}: did you mean {' or '.join(near)}?") from None
        raise UsageError(f"no file or folder {label}: give a text file, a folder, '-', or one of {', '.join(registry.CORPORA)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"cannot read {label!r}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        names = names_in(path)
        if holds_tokens(names):
            return TokenFolder(path, label, options)
        if what := model_in(names):
            resume = f"train it further with --resume {label}, " if what == "a run" else ""
            raise UsageError(f"{label} is {what}, not a text: {resume}start from its weights with --init-from {label}, or give a text")
        return Files(label, lambda report: files_below(path, label, options), options, lenient=True)
    if stat.S_ISFIFO(mode):
        pipe = Stream(label, path, Spool(File(label, path).open))
        return Files(label, lambda report: [pipe], options)
    if not stat.S_ISREG(mode):
        raise UsageError(f"{label} is neither a text file nor a folder")
    return Files(label, lambda report: [File(label, path)], options)


def open_sources(options: DataConfig, data_dir: Path | None = None) -> Source:
    """What a configuration names: its source, with the sources of its other splits where it has them. Raises UsageError."""
    source = open_source(options.source, data_dir, options)
    if not options.val:
        return source
    splits: dict[SplitName, Source] = {"train": source, "val": open_source(options.val, data_dir, options)}
    return Splits(splits | ({"test": open_source(options.test, data_dir, options)} if options.test else {}))


class Several:
    """Sources one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.label = " ".join(source.label for source in sources)

    @property
    def n_bytes(self) -> int | None:
        """The size of all, where each is known."""
        sizes = [source.n_bytes for source in self._sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def on_disk(self) -> Sequence[Path] | None:
        """The files of all."""
        of_each = [source.on_disk for source in self._sources]
        return None if None in of_each else [path for paths in of_each for path in paths or ()]

    @property
    def marks(self) -> tuple[str, ...]:
        """Those that all have."""
        return self._sources[0].marks

    @property
    def split_by(self) -> SplitBy:
        """Conversations are never cut, and never mixed with texts. Raises UsageError."""
        by = {source.split_by: source.label for source in self._sources}
        if len(by) > 1:
            raise not_together(by["conversation"], by["character"])
        return self._sources[0].split_by

    @property
    def notices(self) -> list[str]:
        """Those of each."""
        return [notice for source in self._sources for notice in source.notices]

    @property
    def skipped(self) -> dict[str, int]:
        """Those of all."""
        return dict(sum((Counter(source.skipped) for source in self._sources), Counter()))

    @property
    def fetched(self) -> list[Fetched]:
        """Those of each."""
        return [one for source in self._sources for one in source.fetched]

    def fetch(self, report: Report) -> None:
        """Bring each here."""
        for source in self._sources:
            source.fetch(report)

    def documents(self) -> Iterator[Document]:
        """The documents of each."""
        if self.split_by:  # raises where they do not belong together
            yield from chain.from_iterable(source.documents() for source in self._sources)


class Splits(Several):
    """A source for each split."""

    def __init__(self, splits: Mapping[SplitName, Source]) -> None:
        super().__init__(list(splits.values()))
        self._splits = splits
        self.label = splits["train"].label

    def documents(self) -> Iterator[Document]:
        """The documents of each, with its split."""
        if self.split_by:
            for name, source in self._splits.items():
                yield from (document._replace(split=name) for document in source.documents())
