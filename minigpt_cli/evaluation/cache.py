"""Scores kept beside the run that they are of, so that comparing loads no model. No torch.

`runs/<name>/scores/<key>.safetensors`; the key hashes all that a score depends on: weights, text, the text before it,
protocol and precision. Another checkpoint or a changed text has another key, so a stale score cannot be read. A file that
does not check out is as good as absent: it is only a cache.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from minigpt_cli.durable import write_atomic
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation.scores import Score

FOLDER = "scores"
MAX_CELLS = 4096
_MIN_CELL = 64  # characters
_VERSION = 1


@dataclass(frozen=True)
class ScoreKey:
    """All that a score depends on."""

    weights_sha256: str  # of the checkpoint file
    text_sha256: str  # of the scored text's UTF-8
    before_sha256: str = ""  # of the text that precedes it, of which the end is read; "" for none
    stride: int = 0
    precision: str = "fp32"

    def path(self, run_dir: Path) -> Path:
        """Where the score of this key is kept."""
        digest = hashlib.sha256(json.dumps({**vars(self), "version": _VERSION}, sort_keys=True).encode()).hexdigest()
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
    numbers = json.dumps({name: value if math.isfinite(value) else None for name, value in figures(score).items()})
    header = {"key": json.dumps(vars(key), sort_keys=True), "score": numbers, "cell": str(cell)}
    header["head_sha256"] = _sha256(header["key"], numbers, header["cell"], tensors["cells"])
    header["body_sha256"] = _sha256(tensors["char_nats"], tensors["char_position"])
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise MiniGPTError(f"cannot keep scores in {path.parent}: {error.strerror}") from error
    write_atomic(path, to_safetensors(tensors, metadata=header))


def find(run_dir: Path, key: ScoreKey) -> Score | None:
    """The stored score of this key, or None."""
    try:
        with safe_open(key.path(run_dir), framework="numpy") as file:
            numbers = _numbers(file, key)
            char_nats, position, text = (np.asarray(file.get_tensor(name)) for name in ("char_nats", "char_position", "text"))
            if file.metadata()["body_sha256"] != _sha256(char_nats, position) or key.text_sha256 != _sha256(text):
                return None
            interval = numbers.pop("ci95_low"), numbers.pop("ci95_high")
            return Score(
                **{**numbers, "perplexity": math.inf if numbers["perplexity"] is None else numbers["perplexity"]},
                ci95=interval,
                text_sha256=key.text_sha256,
                char_nats=char_nats.astype(np.float64),
                char_position=position.astype(np.int64),
                text=text.tobytes(),
            )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def find_cells(run_dir: Path, key: ScoreKey) -> tuple[int, npt.NDArray[np.float64]] | None:
    """Characters in a cell and the mean nats per character of each consecutive cell of the text, or None: quick to read and to compare."""
    try:
        with safe_open(key.path(run_dir), framework="numpy") as file:
            _numbers(file, key)
            return int(file.metadata()["cell"]), np.asarray(file.get_tensor("cells"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _numbers(file: Any, key: ScoreKey) -> dict[str, Any]:
    """The figures of an open file, believed if they are this key's and match their checksum. Raises KeyError or ValueError."""
    header = file.metadata() or {}
    if header["key"] != json.dumps(vars(key), sort_keys=True):
        raise ValueError("another key")
    if header["head_sha256"] != _sha256(header["key"], header["score"], header["cell"], np.asarray(file.get_tensor("cells"))):
        raise ValueError("damaged")
    numbers: dict[str, Any] = json.loads(header["score"])
    return numbers


def _sha256(*parts: str | npt.NDArray[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.tobytes())
    return found.hexdigest()


def cell_chars(n_chars: int) -> int:
    """Characters in one cell of a text of this length; the same for every run on it."""
    return max(1, min(_MIN_CELL, n_chars // 64), -(-n_chars // MAX_CELLS))


def cell_means(char_nats: npt.NDArray[np.float64], cell: int) -> npt.NDArray[np.float64]:
    """Means over consecutive cells of `cell` characters; a remainder is dropped."""
    whole = len(char_nats) // cell * cell
    return np.asarray(char_nats[:whole].reshape(-1, cell).mean(axis=1), dtype=np.float64)


def figures(score: Score) -> dict[str, Any]:
    """The figures of a score, without its arrays and text."""
    names = ("nats_per_token", "nats_per_char", "bits_per_byte", "perplexity", "n_tokens", "n_chars", "n_bytes", "block_chars")
    return {**{name: getattr(score, name) for name in names}, "ci95_low": score.ci95[0], "ci95_high": score.ci95[1]}
