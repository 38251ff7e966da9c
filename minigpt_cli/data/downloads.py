"""Corpora from the network: fetched once into the user's cache, and never used unless their hash is the expected one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from minigpt_cli.data.corpora import EMBEDDED, File
from minigpt_cli.data.workshop import Report
from minigpt_cli.errors import MiniGPTError


@dataclass(frozen=True)
class RemoteFile:
    """A file with a public address and the hash it must have: `sha256:…`, or `git:…` for the name that git gives a content."""

    url: str
    name: str
    digest: str

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has this hash."""
        kind, _, expected = self.digest.partition(":")
        found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
        return found.hexdigest() == expected


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(platformdirs.user_cache_dir("minigpt"))


class _Progress:
    """What pooch tells about a download, in the shape of the bar that it expects; passed on to `report`."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done = 0
        self.total = 0

    def update(self, n_bytes: int) -> None:
        """More bytes arrived."""
        self._done += n_bytes
        self._report(self._done, self.total or None)

    def reset(self) -> None:
        """Pooch resets the bar before it closes it."""

    def close(self) -> None:
        """The file is complete."""


def download(files: tuple[RemoteFile, ...], what: str, report: Report, otherwise: str) -> list[Path]:
    """The local paths of `files`, downloaded unless they are in the cache. Raises MiniGPTError with `otherwise` as the way out."""
    import pooch
    import requests

    paths = []
    for file in files:
        path = cache_folder() / file.name
        if not (path.is_file() and file.matches(path)):
            downloader = pooch.HTTPDownloader(progressbar=_Progress(report), timeout=30)
            try:
                path.unlink(missing_ok=True)
                pooch.retrieve(file.url, known_hash=None, fname=file.name, path=path.parent, downloader=downloader)
            except (OSError, ValueError, requests.RequestException) as error:
                raise MiniGPTError(f"cannot download {what} from {file.url.split('/')[2]} ({type(error).__name__}): {otherwise}") from error
            if not file.matches(path):
                path.unlink()
                raise MiniGPTError(f"{file.url} is not the expected file (its hash differs), so it was thrown away: {otherwise}")
        paths.append(path)
    return paths


@dataclass(frozen=True)
class Download:
    """A corpus made of downloaded files, one after the other."""

    label: str
    files: tuple[RemoteFile, ...]
    once: bool = False

    @property
    def n_bytes(self) -> int | None:
        return sum(path.stat().st_size for path in self.paths(lambda done, total: None))

    def paths(self, report: Report) -> list[Path]:
        """The files on this machine."""
        return download(self.files, self.label, report, f"check the connection, or use the embedded text: {EMBEDDED}")

    def fetch(self, report: Report) -> None:
        """Download what is not in the cache."""
        self.paths(report)

    def chunks(self) -> Iterator[str]:
        """The files' texts."""
        for path in self.paths(lambda done, total: None):
            yield from File(self.label, path).chunks()
