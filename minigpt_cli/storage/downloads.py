"""Files from the network: fetched once into the user's cache, and never used unless their hash is the expected one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.escaping import file_name
from minigpt_cli.storage.atomic_io import replace, temporary_beside, write_atomic

Report = Callable[[int, int | None], None]  # bytes done, bytes in all where known

_TIMEOUT_S = 30
_SIZE_LIMIT = 1 << 28  # bytes of a corpus
_URL_LIMIT = 1 << 35  # bytes of what a person names


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
    """The folder of downloaded files."""
    return Path(platformdirs.user_cache_dir("minigpt"))


def _fetch(url: str, path: Path, report: Report, limit: int) -> None:
    """Download `url` to `path`, which gets the whole content or none. Raises ValueError for more than `limit` bytes."""
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT_S) as response, open(temporary, "wb") as file:
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0)) or None
            for block in response.iter_content(1 << 16):
                file.write(block)
                report(file.tell(), total)
                if file.tell() > limit:
                    raise ValueError("the answer is too long")
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def download(files: tuple[RemoteFile, ...], what: str, report: Report, otherwise: str) -> list[Path]:
    """The local paths of `files`, downloaded unless they are in the cache. Raises MiniGPTError with `otherwise` as the last way out."""
    import requests

    paths = []
    for file in files:
        path = cache_folder() / file.name
        if not (path.is_file() and file.is_content(path.read_bytes())):
            try:
                _fetch(file.url, path, report, _SIZE_LIMIT)
            except (OSError, ValueError, requests.RequestException) as error:
                where = f"put {file.url} at {path}, or {otherwise}"
                raise MiniGPTError(f"cannot download {what} ({type(error).__name__}): connect to the network, {where}") from error
            if not file.is_content(path.read_bytes()):
                path.unlink()
                raise MiniGPTError(
                    f"{file.url} is not the expected file (its hash differs), so it was thrown away: try again, or {otherwise}"
                )
        paths.append(path)
    return paths


def download_url(url: str, name: str, report: Report) -> tuple[Path, str]:
    """The local path of what is at an address, downloaded unless it is in the cache as it came, and its SHA-256. Raises MiniGPTError."""
    import requests

    folder = cache_folder() / "urls" / hashlib.sha256(url.encode("utf-8")).hexdigest()[:32]
    stem, dot, suffix = file_name(name, 60).rpartition(".")
    path = folder / (f"{stem[:40]}{dot}{suffix[:10]}" if dot else file_name(name, 40))
    recorded = folder / "sha256"
    try:
        if path.is_file() and recorded.is_file() and recorded.read_text("utf-8") == (sha256 := _hash_of(path)):
            return path, sha256
        _fetch(url, path, report, _URL_LIMIT)
        write_atomic(recorded, sha256 := _hash_of(path))
    except (OSError, ValueError, requests.RequestException) as error:
        raise MiniGPTError(f"cannot download {url} ({_cause(error)}): check the address and the connection") from error
    return path, sha256


def _cause(error: Exception) -> str:
    response = getattr(error, "response", None)
    return type(error).__name__ if response is None else f"the answer is {response.status_code} {response.reason}"


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
