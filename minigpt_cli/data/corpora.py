"""Where text comes from: a file, a folder, a stream, or a corpus with a name.

A source gives its text in pieces, exactly as it is written: byte-order marks, NULs and every kind of line break are
characters like others. What is not UTF-8 is refused with the place of the first wrong byte.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from minigpt_cli import registry
from minigpt_cli.errors import UsageError, unknown_name
from minigpt_cli.storage import downloads
from minigpt_cli.storage.downloads import RemoteFile, Report

BLOCK = 1 << 18  # bytes read at once
EMBEDDED = "python-docs"  # the corpus that needs no network


class TextSource(Protocol):
    """A text that can be read in pieces."""

    @property
    def label(self) -> str: ...  # what the person typed

    @property
    def n_bytes(self) -> int | None: ...  # for a progress bar

    @property
    def once(self) -> bool: ...  # whether chunks() can be asked for only once

    def fetch(self, report: Report) -> None:
        """Bring the text onto this machine, if it is not here."""

    def chunks(self) -> Iterator[str]:
        """The text in pieces of at most BLOCK characters. Raises UsageError where it is not UTF-8."""


def data_folder() -> Path:
    """Where texts and token files live: MINIGPT_DATA_DIR, or ./data."""
    return Path(os.environ.get("MINIGPT_DATA_DIR") or "data")


def open_source(source: str, data_dir: Path | None = None) -> TextSource:
    """The text that `source` names; empty: input.txt in the data folder if it is there, else python-docs. Raises UsageError."""
    if source == "":
        default = (data_dir or data_folder()) / "input.txt"
        return open_path(default) if default.exists() else named_corpus(EMBEDDED)
    if source == "-":
        return StandardInput(sys.stdin.buffer)
    if source in registry.CORPORA and not Path(source).is_file():
        return named_corpus(source)
    return open_path(Path(source), source)


def open_sources(sources: Sequence[str]) -> TextSource:
    """The texts that `sources` name, one after the other. Raises UsageError."""
    if sources.count("-") > 1:
        raise UsageError("standard input can be read only once: give '-' only once")
    opened = [open_source(source) for source in sources or [""]]
    return opened[0] if len(opened) == 1 else Several(tuple(opened))


def named_corpus(name: str) -> TextSource:
    """The corpus registered as `name`."""
    made: TextSource = registry.load("corpus", name)()
    return made


def open_path(path: Path, label: str = "") -> TextSource:
    """The text of a file, pipe or folder. Raises UsageError if there is none."""
    label = label or str(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.parent == Path() and not path.suffix:  # looks like a name
            raise unknown_name("file, folder or corpus", label, registry.CORPORA) from None
        raise UsageError(f"no file or folder {label}: give a text file, a folder, '-', or one of {', '.join(registry.CORPORA)}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {label!r}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        return Folder(label, path)
    if stat.S_ISFIFO(mode):
        return File(label, path, once=True)
    if not stat.S_ISREG(mode):
        raise UsageError(f"{label} is neither a text file nor a folder")
    return File(label, path)


def _open(path: Path, label: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {label}: {error.strerror}") from error


def _decoded(file: BinaryIO, label: str) -> Iterator[str]:
    """The UTF-8 text of an open file in pieces. Raises UsageError naming the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    read = 0
    while True:
        try:
            block = file.read(BLOCK)
        except OSError as error:
            raise UsageError(f"cannot read {label}: {error.strerror}") from error
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = read - pending + error.start
            hint = "it looks like UTF-16" if at == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else error.reason
            raise UsageError(f"{label} is not UTF-8 at byte {at} ({hint}): convert it, e.g. with iconv -t UTF-8") from error
        if text:
            yield text
        if not block:
            return
        read += len(block)


@dataclass(frozen=True)
class File:
    """A text file, or a pipe, which can be read only once."""

    label: str
    path: Path
    once: bool = False

    @property
    def n_bytes(self) -> int | None:
        return None if self.once else self.path.stat().st_size

    def fetch(self, report: Report) -> None:
        """Nothing to do."""

    def chunks(self) -> Iterator[str]:
        """The file's text."""
        with _open(self.path, self.label) as file:
            yield from _decoded(file, self.label)


@dataclass(frozen=True)
class Folder:
    """Every file in a folder and below that is not hidden, in the order of their paths.

    A line break is added between two files where the first ends without one.
    """

    label: str
    path: Path
    once: bool = False

    def files(self) -> list[Path]:
        """The files, sorted by path."""
        found = []
        for root, folders, names in os.walk(self.path):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            found += [path for name in names if not name.startswith(".") and (path := Path(root, name)).is_file()]
        if not found:
            raise UsageError(f"the folder {self.label} has no text files")
        return sorted(found, key=lambda path: path.relative_to(self.path).parts)

    @property
    def n_bytes(self) -> int | None:
        return sum(path.stat().st_size for path in self.files())

    def fetch(self, report: Report) -> None:
        """Nothing to do."""

    def chunks(self) -> Iterator[str]:
        """The files' texts."""
        return _joined(File(str(path), path) for path in self.files())


@dataclass(frozen=True)
class Several:
    """Sources one after the other, joined as the files of a folder are."""

    sources: tuple[TextSource, ...]

    @property
    def label(self) -> str:
        return " ".join(source.label for source in self.sources)

    @property
    def n_bytes(self) -> int | None:
        sizes = [source.n_bytes for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def once(self) -> bool:
        return any(source.once for source in self.sources)

    def fetch(self, report: Report) -> None:
        """Download those that need it."""
        for source in self.sources:
            source.fetch(report)

    def chunks(self) -> Iterator[str]:
        """The sources' texts."""
        return _joined(self.sources)


def _joined(sources: Iterable[TextSource]) -> Iterator[str]:
    """Texts one after the other, with a line break between two where the first ends without one."""
    last = "\n"
    for source in sources:
        for chunk in source.chunks():
            if last != "\n":
                yield "\n"
            yield chunk
            last = "\n"  # inside a source nothing is added
        last = chunk[-1]


@dataclass(frozen=True)
class StandardInput:
    """Standard input: read once."""

    file: BinaryIO
    label: str = "-"
    once: bool = True
    n_bytes: int | None = None

    def fetch(self, report: Report) -> None:
        """Nothing to do."""

    def chunks(self) -> Iterator[str]:
        """What comes in."""
        return _decoded(self.file, "standard input")


@dataclass(frozen=True)
class Embedded:
    """A text that some function makes."""

    label: str
    make: Callable[[], str]
    once: bool = False
    n_bytes: int | None = None

    def fetch(self, report: Report) -> None:
        """Nothing to do."""

    def chunks(self) -> Iterator[str]:
        """The text in pieces."""
        text = self.make()
        for start in range(0, len(text), BLOCK):
            yield text[start : start + BLOCK]


@dataclass(frozen=True)
class Download:
    """A corpus made of downloaded files, one after the other."""

    label: str
    files: tuple[downloads.RemoteFile, ...]
    once: bool = False

    @property
    def n_bytes(self) -> int | None:
        return sum(path.stat().st_size for path in self.paths(lambda done, total: None))

    def paths(self, report: Report) -> list[Path]:
        """The files on this machine."""
        return downloads.download(self.files, self.label, report, f"check the connection, or use the embedded text: {EMBEDDED}")

    def fetch(self, report: Report) -> None:
        """Download what is not in the cache."""
        self.paths(report)

    def chunks(self) -> Iterator[str]:
        """The files' texts."""
        for path in self.paths(lambda done, total: None):
            yield from File(self.label, path).chunks()


def python_docs() -> TextSource:
    """The language reference inside CPython. It differs between Python versions, so its hash is what identifies it."""

    def make() -> str:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:  # some systems split the standard library
            raise UsageError("this Python comes without its documentation (pydoc_data): give a text file") from error
        return "\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n"

    return Embedded("python-docs", make)


def tinyshakespeare() -> TextSource:
    """The char-rnn corpus: 1,115,394 characters of Shakespeare's plays."""
    return Download(
        "tinyshakespeare",
        (
            RemoteFile(
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                "tinyshakespeare.txt",
                "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    )


def wikitext_2() -> TextSource:
    """WikiText-2 (Merity et al. 2016): 13 MB of Wikipedia articles; its training, validation and test texts in this order."""
    # Pinned to one commit, where git names each file by its content: those names are the hashes checked.
    at = "https://raw.githubusercontent.com/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2"
    return Download(
        "wikitext-2",
        (
            RemoteFile(f"{at}/train.txt", "wikitext-2-train.txt", "git:2d84b35af79e411d73ea7cae83c73964c6ac83b4"),
            RemoteFile(f"{at}/valid.txt", "wikitext-2-valid.txt", "git:eec944eb2d9e46061cd34a6913528797db6842fc"),
            RemoteFile(f"{at}/test.txt", "wikitext-2-test.txt", "git:6f3fc88e4cd88456ea892971f9f12243e8428624"),
        ),
    )
