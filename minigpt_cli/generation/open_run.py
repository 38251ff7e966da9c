"""A run made ready to write, without torch: weights from safetensors into NumPy, checked as checkpoints.py checks them.

Whatever this cannot read (an architecture of someone's own, weights that are not float32) is left to checkpoints.py and the
plain path.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.generation.decoders.contract import Decoder
from minigpt_cli.generation.decoders.plan import KNOWN, Array, Plan, build_plan, expected_shapes, is_finite
from minigpt_cli.generation.select_decoder import decoder_for, decoder_of
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import CONFIG, TOKENIZER, TOKENIZER_LIMIT, Run, parse_config
from minigpt_cli.runstore.records import FileRecord, RunRecord
from minigpt_cli.storage import atomic_io
from minigpt_cli.storage.memory import check_memory
from minigpt_cli.tokenization.contract import Tokenizer
from minigpt_cli.tokenization.pretrained import load_tokenizer

HEADER_LIMIT = 8 << 20  # bytes


@dataclass(frozen=True)
class LoadedModel:
    """Everything that generation needs of a run."""

    run: str
    step: int
    config: Any  # RunConfig
    tokenizer: Tokenizer
    token_bytes: list[bytes]
    plan: Plan | None  # None: decoded by the plain path
    model: Any = None  # the torch model, where there is no plan
    notices: list[str] = field(default_factory=list)

    def decoder(self, slots: int = 1, engine: str = "auto") -> Decoder:
        """A decoder of this run's weights, for `slots` sequences at once."""
        return decoder_for(self.plan, slots, engine) if self.plan is not None else decoder_of(self.model, slots)


def open_model(run: Run, which: str = "best") -> LoadedModel:
    """The best or last weights of `run`. Raises RunDamaged if neither generation is whole."""
    if which not in ("best", "last"):
        raise UsageError(f"there is no checkpoint {which!r}: choose best or last")
    writer, notices = snapshots.read_newest(run, partial(_read, run=run, which=which))
    if writer is None:
        return _open_plain(run, which)
    return LoadedModel(**{**vars(writer), "notices": [*writer.notices, *notices]})


def _read(folder: Path, record: RunRecord, run: Run, which: str) -> LoadedModel | None:
    text = _checked(folder, record, CONFIG, atomic_io.JSON_LIMIT)
    config = parse_config(atomic_io.parse_json(text, str(folder / CONFIG)), folder / CONFIG)
    if config.model.arch not in KNOWN or config.lora.lora_rank:  # adapters are added to their base by checkpoints.py
        return None
    data = _checked(folder, record, TOKENIZER, TOKENIZER_LIMIT)
    try:
        tokenizer = load_tokenizer(data.decode("utf-8"))
    except (UnicodeDecodeError, UsageError) as error:
        raise RunDamaged(f"{folder / TOKENIZER} is not a tokenizer: {atomic_io.one_line(str(error))}") from error
    name = f"{which}.safetensors"
    notices = []
    if which == "best" and name not in record.files:
        name = "last.safetensors"
        if record.stop_reason != "imported":  # such a run has but one set of weights
            notices.append(f"run {run.name!r} has no best checkpoint yet: using its last, of step {record.stop_step}")
    tensors = read_tensors(folder / name, _recorded(folder, record, name), expected_shapes(config.model, tokenizer.vocab_size))
    if tensors is None:
        return None
    step = record.best.step if name.startswith("best") and record.best else record.stop_step
    plan = build_plan(config.model, tensors)
    return LoadedModel(run.name, step, config, tokenizer, tokenizer.token_bytes(), plan, None, notices)


def _open_plain(run: Run, which: str) -> LoadedModel:
    from minigpt_cli.checkpoints import load

    loaded = load(run, which)
    t, model = loaded.tokenizer, loaded.config.model
    plan = build_plan(model, {name: w.numpy() for name, w in loaded.model.state_dict().items()}) if model.arch in KNOWN else None
    return LoadedModel(run.name, loaded.step, loaded.config, t, t.token_bytes(), plan, loaded.model, list(loaded.notices))


def _recorded(folder: Path, record: RunRecord, name: str) -> FileRecord:
    if not record.files:
        raise RunDamaged(f"run {record.name!r} has not saved a checkpoint yet")
    if name not in record.files:
        raise RunDamaged(f"{folder} has a record that names no {name}")
    return record.files[name]


def _checked(folder: Path, record: RunRecord, name: str, limit: int) -> bytes:
    data = atomic_io.read_bounded(folder / name, limit)
    if hashlib.sha256(data).hexdigest() != _recorded(folder, record, name).sha256:
        raise RunDamaged(f"{folder / name} does not match its checksum")
    return data


def read_tensors(path: Path, expected: FileRecord, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array] | None:
    """Exactly the float32 tensors named in `shapes`; None if the file holds other types. Raises RunDamaged if it is not sound."""
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    fd = atomic_io.open_regular(path)
    try:
        total = os.fstat(fd).st_size
        if total != expected.bytes or total > 2 * size + HEADER_LIMIT:
            raise RunDamaged(f"{path} has {total:,} bytes, and its record says {expected.bytes:,}")
        check_memory(2 * total, f"the weights in {path}")
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read()
    finally:
        os.close(fd)
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise RunDamaged(f"{path} does not match its checksum")
    header, begin = _header(data, path)
    if any(entry.get("dtype") != "F32" for entry in header.values()):
        return None
    for name, shape in shapes.items():
        found = header.get(name, {}).get("shape")
        if found != list(shape):
            raise RunDamaged(
                f"{path}: tensor {name} is {'missing' if found is None else found} and its configuration asks for {list(shape)}"
            )
    if surplus := header.keys() - shapes.keys():
        unknown = atomic_io.one_line(min(surplus), 80)
        raise RunDamaged(f"{path} holds {len(surplus)} tensors that its configuration does not know: {unknown}")
    return {name: _array(data, begin, header[name], path, name) for name in shapes}


def _header(data: bytes, path: Path) -> tuple[dict[str, Any], int]:
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
    if not 2 <= length <= min(HEADER_LIMIT, len(data) - 8):
        raise RunDamaged(f"{path} is not a safetensors file")
    header = atomic_io.parse_json(data[8 : 8 + length], f"the header of {path}")
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise RunDamaged(f"{path} is damaged: its header is not understood")
    header.pop("__metadata__", None)
    return header, 8 + length


def _array(data: bytes, begin: int, entry: Mapping[str, Any], path: Path, name: str) -> Array:
    shape, offsets = entry["shape"], entry.get("data_offsets")
    count = math.prod(shape)
    if (
        not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets))
        or offsets[1] - offsets[0] != 4 * count
        or begin + offsets[1] > len(data)
    ):
        raise RunDamaged(f"{path} is damaged: shape and size of tensor {atomic_io.one_line(name, 80)} do not agree")
    array = np.frombuffer(data, "<f4", count, begin + offsets[0])
    if not is_finite(array):
        raise RunDamaged(f"{path} is damaged: tensor {name} holds numbers that are not finite; use an earlier save or another run")
    return array.reshape(shape)
