"""Texts that need not be read again: a training on token files that are there should begin at once, also where the text has 10 GB.

`scanned.json` beside the token files says how every file of the text was when it was read: its size, times and place on the disk. Where all
are still so, and the settings are the same, the text is the same. Only files that minigpt and Python alone read are trusted so, since
another version of a library may read others otherwise; and --verify-data reads the text anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from minigpt_cli.bounds import Line, Text
from minigpt_cli.config import DataConfig
from minigpt_cli.data.dataset import Dataset, Origins, cached
from minigpt_cli.data.sources.contract import Source
from minigpt_cli.data.verified import stamp_of
from minigpt_cli.errors import MiniGPTError, RunDamaged
from minigpt_cli.storage.atomic_io import read_json, sweep_abandoned, write_atomic

SCANNED = "scanned.json"
_OWN_KINDS = {"text", "JSONL", "JSON", "CSV"}


class _Note(BaseModel):
    """The content of scanned.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Line
    key: Line  # of the token files
    origins: Origins
    notices: tuple[Text, ...]


def state_of(source: Source, config: DataConfig, tokenizer: Mapping[str, Any]) -> str:
    """The hash of all that reading a source depends on, without reading it; empty where that is not known."""
    stamps = [(str(path), stamp_of(path)) for path in source.on_disk or ()]
    if not stamps or not all(stamp for _, stamp in stamps):
        return ""
    made_by = [version("minigpt-cli"), sys.version]
    settings = config.model_dump(mode="json", exclude={"sampling", "document_mask"})
    return hashlib.sha256(json.dumps([made_by, settings, tokenizer, stamps], sort_keys=True).encode()).hexdigest()


def find(folders: Iterable[Path], state: str) -> Dataset | None:
    """The token files, whole, in the one of `folders` that was made from a text in this state."""
    for folder in folders:
        with suppress(RunDamaged, ValidationError):
            note = _Note.model_validate(read_json(folder / SCANNED))
            if note.state == state and (found := cached(folder, note.key)) is not None:
                return replace(found, origins=note.origins, notices=note.notices)
    return None


def keep(dataset: Dataset, state: str) -> None:
    """Note that `dataset` was made from a text in this state, where its folder can be written to."""
    if state and dataset.origins.kinds.keys() <= _OWN_KINDS:
        sweep_abandoned(dataset.dir)
        with suppress(MiniGPTError):
            note = _Note(state=state, key=dataset.key, origins=dataset.origins, notices=dataset.notices)
            write_atomic(dataset.dir / SCANNED, note.model_dump_json())
