"""Scores kept in the run's folder, so that comparing runs loads no model. No torch.

`runs/<name>/scores/<key>.safetensors`; the key hashes everything that a score depends on: weights, text, the text before it,
protocol and precision. Another checkpoint or a changed text has another key, so an outdated score is never read. A damaged file is
treated as missing: this is only a cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from minigpt_cli.bounds import NATS_LIMIT, Count, Nats
from minigpt_cli.data.parts import PartKind
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation.scores import PartsScored, Score
from minigpt_cli.evaluation.statistics import cell_means
from minigpt_cli.storage.atomic_io import open_regular, parse_json, sweep_abandoned, write_atomic

FOLDER = "scores"
MAX_CELLS = 4096
_UNUSABLE = (OSError, SafetensorError, MiniGPTError, KeyError, TypeError, ValueError)  # raised for a file that is not a kept score
SIZE_LIMIT = 1 << 32  # bytes: a text of 300 million characters
_MIN_CELL = 64  # characters
_VERSION = 1


@dataclass(frozen=True)
class ScoreKey:
    """Everything that a score depends on."""

    weights_sha256: str  # of the checkpoint file
    text_sha256: str  # of the scored text's UTF-8
    before_sha256: str = ""  # of the text before it, whose end is the context; "" for none
    stride: int = 0
    precision: str = "fp32"
    scored: str = ""  # "answers": of conversations, the answers alone; "documents": each with its end
    recent: int = 0  # tokens

    def to_json(self) -> str:
        """The key as text. `scored` and `recent` are left out where they say nothing, as in older versions, so that their scores are
        found."""
        return json.dumps({name: value for name, value in vars(self).items() if name not in ("scored", "recent") or value}, sort_keys=True)

    def path(self, run_dir: Path) -> Path:
        """Where the score of this key is kept."""
        digest = hashlib.sha256(json.dumps({**json.loads(self.to_json()), "version": _VERSION}, sort_keys=True).encode()).hexdigest()
        return run_dir / FOLDER / f"{digest[:32]}.safetensors"


def keep(run_dir: Path, key: ScoreKey, score: Score) -> None:
    """Store a score. Raises MiniGPTError if it cannot be written."""
    path = key.path(run_dir)
    cell = cell_chars(score.n_chars)
    tensors: dict[str, npt.NDArray[Any]] = {
        "char_nats": score.char_nats.astype(np.float32),
        "char_position": np.minimum(score.char_position, 65_535).astype(np.uint16),
        "cells": cell_means(score.char_nats, cell),
        "text": np.frombuffer(score.text, dtype=np.uint8),
    }
    numbers = json.dumps({name: value if math.isfinite(value) else None for name, value in _figures(score).items()})
    if score.parts is not None:
        tensors[score.parts.kind] = score.parts.first
    header = {"key": key.to_json(), "score": numbers, "cell": str(cell)}
    header["head_sha256"] = _sha256(header["key"], numbers, header["cell"], tensors["cells"])
    header["body_sha256"] = _sha256(*_body(tensors))
    make_folder(path.parent)
    sweep_abandoned(path.parent)
    write_atomic(path, to_safetensors(tensors, metadata=header))


def find(run_dir: Path, key: ScoreKey) -> Score | None:
    """The stored score of this key, or None."""
    try:
        with _opened(key.path(run_dir)) as file:
            numbers = _numbers(file, key)
            char_nats = _array(file, "char_nats", np.float32, numbers["n_chars"])
            position = _array(file, "char_position", np.uint16, numbers["n_chars"])
            text = _array(file, "text", np.uint8, numbers["n_bytes"])
            found = {"char_nats": char_nats, "char_position": position, "text": text}
            ends_nats, parts = numbers.pop("ends_nats"), None
            if (kind := _kind(key.scored)) is not None:
                first = found[kind] = np.asarray(file.get_tensor(kind))
                parts = PartsScored(kind, first, ends_nats)
            if file.metadata()["body_sha256"] != _sha256(*_body(found)):
                return None
            if not (key.text_sha256 == _sha256(text) if parts is None else _are_parts(parts.first, text, len(char_nats))):
                return None
            interval = numbers.pop("ci95_low"), numbers.pop("ci95_high")
            return Score(
                **{**numbers, "perplexity": math.inf if numbers["perplexity"] is None else numbers["perplexity"]},
                ci95=interval,
                text_sha256=key.text_sha256,
                char_nats=char_nats.astype(np.float64),
                char_position=position.astype(np.int64),
                text=text.tobytes(),
                parts=parts,
            )
    except _UNUSABLE:
        return None


def find_cells(run_dir: Path, key: ScoreKey) -> npt.NDArray[np.float64] | None:
    """The mean nats per character of each consecutive cell of the text, or None: quick to read and to compare."""
    try:
        with _opened(key.path(run_dir)) as file:
            n_chars = _numbers(file, key)["n_chars"]
            return _array(file, "cells", np.float64, n_chars // cell_chars(n_chars))
    except _UNUSABLE:
        return None


def make_folder(folder: Path) -> None:
    """Make the folder of kept scores if it is missing. Raises MiniGPTError if that is impossible."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MiniGPTError(f"cannot keep scores in {folder}: {error.strerror}") from error


class _Figures(BaseModel):
    """The figures of a kept score."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    nats_per_token: Nats
    nats_per_char: Nats
    bits_per_byte: Nats
    perplexity: float | None  # None: infinite
    n_tokens: Count
    n_chars: Annotated[Count, Field(ge=1)]
    n_bytes: Count
    block_chars: Annotated[Count, Field(ge=1)]
    ci95_low: Nats
    ci95_high: Nats
    ends_nats: Annotated[float, Field(ge=0, le=NATS_LIMIT)] = 0.0  # of parts


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file of a kept score. Raises one of _UNUSABLE for anything but a regular file of a reasonable size."""
    fd = open_regular(path)
    try:
        if os.fstat(fd).st_size > SIZE_LIMIT:
            raise ValueError("too large")
    finally:
        os.close(fd)
    with safe_open(path, framework="numpy") as file:
        yield file


def _array(file: Any, name: str, dtype: type[Any], length: int) -> npt.NDArray[Any]:
    """An array of the file. Raises ValueError where its type, length or values are impossible in a score."""
    array: npt.NDArray[Any] = np.asarray(file.get_tensor(name))
    if array.dtype != dtype or array.shape != (length,):
        raise ValueError("another type or length")
    if array.dtype.kind == "f" and not (np.abs(array) <= NATS_LIMIT).all():
        raise ValueError("not finite")
    return array


def _numbers(file: Any, key: ScoreKey) -> dict[str, Any]:
    """The figures of an open file. Raises KeyError or ValueError unless they belong to this key and match their checksum."""
    header = file.metadata() or {}
    if header["key"] != key.to_json():
        raise ValueError("another key")
    if header["head_sha256"] != _sha256(header["key"], header["score"], header["cell"], np.asarray(file.get_tensor("cells"))):
        raise ValueError("damaged")
    return _Figures.model_validate(parse_json(header["score"].encode("utf-8"), "the score")).model_dump()


def _kind(scored: str) -> PartKind | None:
    """The kind of parts that a key names."""
    return next((kind for kind in get_args(PartKind) if kind == scored), None)


def _are_parts(first: npt.NDArray[Any], text: npt.NDArray[Any], n_chars: int) -> bool:
    """Whether the text has `n_chars` characters and the parts begin in it, in order."""
    bounds = np.concatenate([[0], first, [n_chars]]) if first.ndim == 1 and first.dtype == np.int64 else np.array([1, 0])
    return len(text.tobytes().decode()) == n_chars and bool((np.diff(bounds) >= 0).all())


def _body(tensors: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """The tensors that the body's checksum covers; a whole text is already covered by the key's hash."""
    parts = [kind for kind in get_args(PartKind) if kind in tensors]
    names = ("char_nats", "char_position", *parts, *(["text"] if parts else []))
    return [tensors[name] for name in names]


def _sha256(*parts: str | npt.NDArray[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.tobytes())
    return found.hexdigest()


def cell_chars(n_chars: int) -> int:
    """Characters in one cell of a text of this length; the same for every run on it."""
    return max(1, min(_MIN_CELL, n_chars // 64), -(-n_chars // MAX_CELLS))


def _figures(score: Score) -> dict[str, Any]:
    """The figures of a score, without its arrays and text."""
    names = ("nats_per_token", "nats_per_char", "bits_per_byte", "perplexity", "n_tokens", "n_chars", "n_bytes", "block_chars")
    found = {**{name: getattr(score, name) for name in names}, "ci95_low": score.ci95[0], "ci95_high": score.ci95[1]}
    return found | ({"ends_nats": score.parts.ends_nats} if score.parts else {})
