"""Models of the Hugging Face hub: hf:OWNER/NAME[@REVISION] as a folder on this machine, and a folder as a repository of the hub.

Of a repository only named files are downloaded: safetensors, JSON and vocabularies, into a folder named after the commit. Pickles and
Python files stay on the hub. Each file must have the size and the hash that the hub gave for the commit.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.escaping import file_name
from minigpt_cli.interchange import huggingface
from minigpt_cli.storage import atomic_io, downloads
from minigpt_cli.storage.hub import PREFIX, explained, library
from minigpt_cli.storage.memory import check_memory

_ADDRESS = re.compile(rf"{PREFIX}(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = re.compile(r"model(-\d{1,6}-of-\d{1,6})?\.safetensors")
_CONFIG = "config.json"
_OTHERS = (_CONFIG, "model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_SMALL = 64 << 20  # bytes of any file but weights
_MOST_FILES = 1000


@dataclass(frozen=True)
class _RemoteFile:
    """A file of a commit, with the size and the hash that the hub gives for it: `sha256` of large files, else the one that git computes."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    def is_content_of(self, path: Path) -> bool:
        """Whether the file at `path` is this one."""
        if path.stat().st_size != self.size:
            return False
        with open(path, "rb") as stream:
            if self.sha256 is not None:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256
            beginning = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            return hashlib.file_digest(stream, beginning.copy).hexdigest() == self.git_sha1


@dataclass(frozen=True)
class HubModel:
    """A model of the hub on this machine."""

    folder: Path
    address: str  # with the commit


def fetch(address: str) -> HubModel:
    """The model at hf:OWNER/NAME[@REVISION], downloaded once for each commit. Raises UsageError for what does not exist or holds no
    safetensors, MiniGPTError without a connection."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(f"{atomic_io.one_line(address, 100)} is not a model of the hub: write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    api, repo = library().HfApi(), match["repo"]
    with explained(f"download {address}", repo):
        info = api.model_info(repo, revision=match["revision"], files_metadata=True)
        files = _chosen(address, info.siblings or [])
        folder = downloads.cache_folder() / "hub" / file_name(repo.replace("/", "--")) / file_name(info.sha)
        _check_room(address, folder, files)
        for file in files:
            _download(api, repo, info.sha, file, folder)
            if file.name == _CONFIG:
                huggingface.check_config(folder)  # before gigabytes of weights that cannot be read
    return HubModel(folder, f"{PREFIX}{repo}@{info.sha}")


def _chosen(address: str, siblings: list[Any]) -> list[_RemoteFile]:
    """The files of a repository that are needed, config.json first. Raises UsageError where needed ones are missing or of no known size."""
    names = {sibling.rfilename for sibling in siblings}
    wanted = {name for name in names if name in _OTHERS or _WEIGHTS.fullmatch(name)}
    if "tokenizer.json" in wanted:
        wanted -= {"tokenizer.model", "vocab.json", "merges.txt"}
    if _CONFIG not in wanted or not any(map(_WEIGHTS.fullmatch, wanted)):
        missing = _CONFIG if _CONFIG not in wanted else "model.safetensors"
        pickled = " (its pickled weights are never loaded)" if any(name.endswith((".bin", ".pt", ".pth")) for name in names) else ""
        raise UsageError(f"{address} has no {missing}{pickled}: minigpt reads models that are stored as safetensors and JSON")
    if len(wanted) > _MOST_FILES:
        raise UsageError(f"{address} has {len(wanted):,} files of weights, more than the {_MOST_FILES:,} that are read")
    files = []
    for sibling in sorted((s for s in siblings if s.rfilename in wanted), key=lambda s: (s.rfilename != _CONFIG, s.rfilename)):
        name, size = sibling.rfilename, sibling.size
        if not isinstance(size, int) or (size > _SMALL and not _WEIGHTS.fullmatch(name)):
            raise UsageError(f"{address}: {name} has {size} bytes, and such a file may have {_SMALL:,}")
        files.append(_RemoteFile(name, size, getattr(sibling.lfs, "sha256", None), sibling.blob_id))
    return files


def _check_room(address: str, folder: Path, files: list[_RemoteFile]) -> None:
    """Raise MiniGPTError unless disk and memory have room for the files."""
    n_bytes = sum(file.size for file in files)
    check_memory(n_bytes, f"the model {address}")
    missing = sum(file.size for file in files if not (folder / file.name).is_file())
    atomic_io.check_space(folder, missing, "free some space, or set XDG_CACHE_HOME to a folder on another disk")


def _download(api: Any, repo: str, commit: str, file: _RemoteFile, folder: Path) -> None:
    """Have `file` in `folder`. Raises MiniGPTError if what came is another content."""
    path = folder / file.name
    if not (path.is_file() and file.is_content_of(path)):
        path.unlink(missing_ok=True)
        api.hf_hub_download(repo, file.name, revision=commit, local_dir=folder)
        if not file.is_content_of(path):
            path.unlink()
            raise MiniGPTError(f"{file.name} of {PREFIX}{repo} came with another size or hash than the hub gives for it: try again")


def check_push(repo: str) -> None:
    """Raise UsageError, before any work, unless `repo` can be a repository and somebody is logged in."""
    if not _REPOSITORY.fullmatch(repo):
        raise UsageError(f"--push {atomic_io.one_line(repo, 100)} is not a repository: write OWNER/NAME")
    if library().get_token() is None:
        raise UsageError(f"--push {repo} needs your login: type `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str) -> str:
    """The address of the model repository that now holds the files of `folder` in a new commit. It is made, private, if it does not exist.
    Raises UsageError if the hub refuses the login."""
    api = library().HfApi()
    with explained(f"push to {repo}", repo):
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export from minigpt")
    return str(address)
