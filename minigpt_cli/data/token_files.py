"""The token files of a dataset in the making, which a preparation that was killed leaves behind for the next one to go on from.

Now and then `progress.json` notes how far the files are: how long each is and its hash up to there, and which part of the text was
encoded last. Who prepares the same text with the same settings takes the files up to there, if they still have those hashes, and
encodes the rest of the text. The text itself is read from its start, since what it holds is counted and hashed as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from minigpt_cli.bounds import Count, Line
from minigpt_cli.data.dataset import TOKENIZER, Dtype, dtype_for, token_blocks
from minigpt_cli.data.text_reader import Counted
from minigpt_cli.errors import RunDamaged
from minigpt_cli.storage.atomic_io import open_regular, read_bounded, read_json, write_atomic
from minigpt_cli.tokenization.contract import Tokenizer, token_lengths
from minigpt_cli.tokenization.json_format import SIZE_LIMIT
from minigpt_cli.tokenization.pretrained import load_tokenizer

PROGRESS = "progress.json"
_SAVE_EVERY = 1 << 25  # bytes of token files
_BLOCK = 1 << 20


class Progress(BaseModel):
    """The content of progress.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Line  # of minigpt, whose next may cut the text otherwise
    key: Line  # of the text and the settings
    tokenizer: Line
    tokenizer_sha256: Line
    batch: Count  # the number of the batch of text that was encoded last,
    begin: Count  # and where in its token file it begins, in bytes
    files: dict[Line, tuple[Count, Line]]  # bytes and hash of each token file


class Unfinished(NamedTuple):
    """What a killed preparation left behind."""

    progress: Progress
    hashes: dict[str, hashlib._Hash]  # of each token file, up to where it is gone on from


def unfinished_in(folder: Path, key: str) -> Unfinished | None:
    """What a killed preparation of this key left behind; None where there is nothing to go on from."""
    try:
        found = Progress.model_validate(read_json(folder / PROGRESS))
        if (found.version, found.key) != (version("minigpt-cli"), key):
            return None
        if hashlib.sha256(read_bounded(folder / TOKENIZER, SIZE_LIMIT)).hexdigest() != found.tokenizer_sha256:
            return None
        hashes = {name: _hash(folder / name, n_bytes) for name, (n_bytes, _) in found.files.items()}
        whole = all(hashes[name].hexdigest() == sha256 for name, (_, sha256) in found.files.items())
        return Unfinished(found, hashes) if whole else None
    except (RunDamaged, ValidationError, OSError):
        return None


def _hash(path: Path, n_bytes: int) -> hashlib._Hash:
    """The hash of the first bytes of a file."""
    sha256 = hashlib.sha256()
    if not n_bytes:
        return sha256
    with open(open_regular(path), "rb") as file:
        while n_bytes and (block := file.read(min(n_bytes, _BLOCK))):
            sha256.update(block)
            n_bytes -= len(block)
    return sha256


def tokenizer_in(folder: Path, progress: Progress) -> Tokenizer:
    """The tokenizer that a killed preparation made."""
    return load_tokenizer((folder / TOKENIZER).read_text("utf-8"), progress.tokenizer)


class TokenFiles:
    """The open token files of each split, and the notes of what is written to them."""

    def __init__(self, folder: Path, key: str, tokenizer: Tokenizer, splits: Mapping[str, Counted], found: Unfinished | None) -> None:
        """They go on from what was `found`; else they are empty."""
        self.dtype: Dtype = dtype_for(tokenizer.vocab_size)
        self._folder, self._splits, self._unsaved = folder, splits, 0
        self._progress = found.progress if found else self._beginning(key, tokenizer)
        self._hashes = found.hashes if found else {}
        self._lengths = token_lengths(tokenizer.token_bytes())
        self._files: dict[str, BinaryIO] = {}

    def _beginning(self, key: str, tokenizer: Tokenizer) -> Progress:
        json_text = tokenizer.to_json()
        write_atomic(self._folder / TOKENIZER, json_text)
        sha256 = hashlib.sha256(json_text.encode("utf-8")).hexdigest()
        return Progress(
            version=version("minigpt-cli"), key=key, tokenizer=tokenizer.name, tokenizer_sha256=sha256, batch=0, begin=0, files={}
        )

    @property
    def tokenizer_sha256(self) -> str:
        """The hash of tokenizer.json."""
        return self._progress.tokenizer_sha256

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the files open during the block; at its end they are complete."""
        with ExitStack() as stack:
            for name, counted in self._splits.items():
                path = self._folder / f"{name}.bin"
                n_bytes, _ = self._progress.files.get(path.name, (0, ""))
                file = self._files[name] = stack.enter_context(path.open("r+b" if n_bytes else "wb"))
                file.seek(file.truncate(n_bytes))
                counted.resume(self._hashes.get(path.name, hashlib.sha256()), n_bytes // np.dtype(self.dtype).itemsize)
            yield
        (self._folder / PROGRESS).unlink(missing_ok=True)

    def encode(self, name: str, batch: int, pieces: Iterator[str], tokenizer: Tokenizer) -> Generator[None, None, None]:
        """Write the tokens of a batch of text; what the killed preparation has encoded of it is read and not written again. Yields now
        and then."""
        if batch < self._progress.batch:
            for _ in pieces:
                pass
            yield
            return
        file, counted, begin = self._files[name], self._splits[name], self._files[name].tell()
        if batch == self._progress.batch and begin:
            begin, end = self._progress.begin, begin
            pieces = _after(self._spelled(name, begin, end), pieces)
        for ids in tokenizer.encode_stream(pieces):
            data = ids.astype(self.dtype, copy=False).view(np.uint8).data
            file.write(data)
            counted.written(data, len(ids))
            self._unsaved += len(data)
            if self._unsaved >= _SAVE_EVERY:
                self._save(batch, begin)
            yield

    def _spelled(self, name: str, begin: int, end: int) -> int:
        """How many bytes of text the tokens in a part of a token file stand for."""
        size = np.dtype(self.dtype).itemsize
        blocks = token_blocks(self._folder / f"{name}.bin", self.dtype, begin // size, (end - begin) // size)
        return sum(int(self._lengths[ids].sum()) for ids in blocks)

    def _save(self, batch: int, begin: int) -> None:
        for file in self._files.values():
            file.flush()
        files = {f"{name}.bin": (file.tell(), self._splits[name].file_sha256) for name, file in self._files.items()}
        self._progress = self._progress.model_copy(update={"batch": batch, "begin": begin, "files": files})
        write_atomic(self._folder / PROGRESS, self._progress.model_dump_json())
        self._unsaved = 0


def _after(n_bytes: int, pieces: Iterator[str]) -> Iterator[str]:
    """The pieces after so many bytes of UTF-8."""
    for piece in pieces:
        if not n_bytes:
            yield piece
            continue
        data = piece.encode("utf-8")
        if rest := data[n_bytes:].decode("utf-8"):
            yield rest
        n_bytes -= min(n_bytes, len(data))
