"""Corpora with a name: the one inside Python, and those that are downloaded once, with a checked hash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minigpt_cli import registry
from minigpt_cli.data.sources.contract import Document, PlainText, SplitName
from minigpt_cli.data.sources.decoding import pieces, texts
from minigpt_cli.data.sources.files import File
from minigpt_cli.errors import UsageError
from minigpt_cli.storage import downloads
from minigpt_cli.storage.downloads import RemoteFile, Report

EMBEDDED = "python-docs"  # the corpus that needs no network


def named_corpus(name: str) -> PlainText:
    """The corpus registered as `name`."""
    made: PlainText = registry.load("corpus", name)()
    return made


@dataclass(frozen=True)
class Download(PlainText):
    """A corpus made of downloaded files, one after the other."""

    label: str
    files: tuple[RemoteFile, ...]
    splits: tuple[SplitName, ...] = ()  # of each file, where they are official

    @property
    def n_bytes(self) -> int | None:
        return sum(path.stat().st_size for path in self.paths(lambda done, total: None))

    def paths(self, report: Report) -> list[Path]:
        """The files on this machine."""
        return downloads.download(
            self.files, self.label, report, f"train on a text of yours, minigpt train FILE, or on {EMBEDDED}, which is here"
        )

    def fetch(self, report: Report) -> None:
        """Download what is not in the cache."""
        self.paths(report)

    def chunks(self) -> Iterator[str]:
        """The files' texts."""
        for path in self.paths(lambda done, total: None):
            yield from texts(File(self.label, path), "")

    def documents(self) -> Iterator[Document]:
        """The text as one document, or each split as one."""
        if not self.splits:
            yield from super().documents()
        for path, split in zip(self.paths(lambda done, total: None) if self.splits else (), self.splits, strict=True):
            yield Document(f"{self.label} {split}", pieces(File(self.label, path), ""), split)


class PythonDocs(PlainText):
    """The language reference inside CPython. It differs between Python versions, so its hash is what identifies it."""

    label = EMBEDDED

    def chunks(self) -> Iterator[str]:
        """The topics by name, with an empty line between two."""
        try:
            from pydoc_data.topics import topics
        except ImportError as error:  # some systems split the standard library
            raise UsageError("this Python comes without its documentation (pydoc_data): give a text file") from error
        names = sorted(topics)
        for name in names:
            yield topics[name].strip("\n") + ("\n" if name == names[-1] else "\n\n")


def tinyshakespeare() -> PlainText:
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


def wikitext_2() -> PlainText:
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
        splits=("train", "val", "test"),
    )
