"""Files from the network: fetched once into the user's cache, and never used unless their hash is the expected one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from minigpt_cli.errors import MiniGPTError

Report = Callable[[int, int | None], None]  # bytes done, bytes in all where known


@dataclass(frozen=True)
class RemoteFile:
    """A file with a public address and the hash it must have: `sha256:…`, or `git:…` for the name that git gives a content."""

    url: str
    name: str
    digest: str

    def is_content(self, data: bytes) -> bool:
        """Whether `data` has this hash."""
        kind, _, expected = self.digest.partition(":")
        if kind == "git":
            return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == expected
        return hashlib.sha256(data).hexdigest() == expected


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
        if not (path.is_file() and file.is_content(path.read_bytes())):
            downloader = pooch.HTTPDownloader(progressbar=_Progress(report), timeout=30)
            try:
                path.unlink(missing_ok=True)
                pooch.retrieve(file.url, known_hash=None, fname=file.name, path=path.parent, downloader=downloader)
            except (OSError, ValueError, requests.RequestException) as error:
                raise MiniGPTError(f"cannot download {what} from {file.url.split('/')[2]} ({type(error).__name__}): {otherwise}") from error
            if not file.is_content(path.read_bytes()):
                path.unlink()
                raise MiniGPTError(f"{file.url} is not the expected file (its hash differs), so it was thrown away: {otherwise}")
        paths.append(path)
    return paths
