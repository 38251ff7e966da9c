"""Tensors from files of other programs: .safetensors, and .pt / .pth / .bin / .ckpt through torch's weights-only loader.

A pickle is opened only by `torch.load(weights_only=True)` of a torch without a known hole in it (CVE-2025-32434 before 2.6,
CVE-2026-24747 before 2.10), only in the zip format, and only if its parts are not compressed, so that a small file cannot
become a large one in memory.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt_cli.checkpoints import load_tensors
from minigpt_cli.errors import UsageError
from minigpt_cli.storage import atomic_io
from minigpt_cli.storage.memory import check_memory

SAFE_SINCE = (2, 10)
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_STATE_KEYS = ("model", "state_dict", "model_state_dict", "module", "model_state")
_PREFIXES = ("module.", "_orig_mod.", "model.module.", "_forward_module.")
_PICKLE_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, OSError,
    OverflowError, ImportError, MemoryError, RecursionError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class TensorSource:
    """What a file holds."""

    tensors: dict[str, Tensor]
    other: dict[str, Any] = field(default_factory=dict)  # plain values beside the tensors, such as nanoGPT's model_args
    notes: list[str] = field(default_factory=list)


def read(path: Path) -> TensorSource:
    """The tensors of a file, by suffix, without known prefixes. Raises UsageError or RunDamaged; executes nothing."""
    if path.suffix == ".safetensors":
        found = TensorSource(load_tensors(path.resolve()))  # a link in a folder that the hub's library made
    elif path.suffix in PICKLED:
        found = _pickled(path)
    else:
        raise UsageError(f"{path} has an unknown suffix: use .safetensors, {', '.join(PICKLED)}")
    tensors, notes = without_prefixes(found.tensors)
    if not tensors:
        raise UsageError(f"{path} holds no tensors")
    return TensorSource(tensors, found.other, [*found.notes, *notes])


def _pickled(path: Path) -> TensorSource:
    refuse_vulnerable_torch(path, torch.__version__)
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _PICKLE_ERRORS as error:
        raise UsageError(f"{path} is refused: it holds more than tensors and plain values, or is damaged ({_reason(error)})") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, not a table of tensors")
    state, other, notes = content, {}, []
    for key in _STATE_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            state, other = inner, {k: v for k, v in content.items() if k != key and not isinstance(v, Tensor)}
            notes.append(f"used the tensors under {key!r}")
            break
    tensors = {str(name): _ordinary(path, str(name), value.detach()) for name, value in state.items() if isinstance(value, Tensor)}
    return TensorSource(tensors, {str(k): v for k, v in other.items()}, notes)


def _ordinary(path: Path, name: str, tensor: Tensor) -> Tensor:
    """`tensor`, if it is dense and its real numbers are stored. Raises UsageError for every other kind of tensor."""
    kinds = {
        "nested": tensor.is_nested,
        "without values (on the meta device)": tensor.is_meta,
        "quantized": tensor.is_quantized,
        "sparse": tensor.layout is not torch.strided,
        "complex": tensor.is_complex(),
    }
    if kind := next((kind for kind, found in kinds.items() if found), None):
        raise UsageError(
            f"{path}: tensor {atomic_io.one_line(name, 80)} is {kind}: save it as a dense one, with .to_dense() or .dequantize()"
        )
    check_memory(4 * tensor.numel(), f"tensor {atomic_io.one_line(name, 80)} in {path}")  # a view can claim more than is stored
    return tensor


def refuse_vulnerable_torch(path: Path, version: str) -> None:
    """Raise UsageError unless this torch's weights-only loader has no known hole."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if not match or (int(match[1]), int(match[2])) < SAFE_SINCE:
        raise UsageError(
            f"{path} is a pickle, and torch {version} can be made to run code by one (CVE-2026-24747): "
            f"update to torch {SAFE_SINCE[0]}.{SAFE_SINCE[1]} or later, or give a .safetensors file"
        )


def _check_archive(path: Path) -> None:
    """Raise unless the file is a zip of uncompressed parts that fits in memory."""
    try:
        with open(path, "rb") as stream:
            if stream.read(4) != b"PK\x03\x04":
                raise UsageError(f"{path} is not a file of torch 1.6 or later: save it again with a newer torch, or as .safetensors")
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {atomic_io.one_line(str(error), 100)}") from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise UsageError(f"{path} is refused: torch stores tensors uncompressed, and this file does not")
    check_memory(sum(part.file_size for part in parts), str(path))


def _reason(error: BaseException) -> str:
    """The line of torch's long message that names what it refused."""
    text = str(error)
    match = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|operand|class)[^.\n]*", text)
    return atomic_io.one_line(f"it asks for {match[1]}" if match and match[1] else match[0] if match else text, 120)


def without_prefixes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` without the prefixes that wrappers (DistributedDataParallel, torch.compile) add to every name; and notes."""
    found, notes = dict(tensors), []
    while found:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
        notes.append(f"removed the prefix {prefix!r} from every name")
    return found, notes
