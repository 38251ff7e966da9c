"""Safetensors files: every byte is checked on reading, nothing is copied on writing. torch is imported for tensors only.

Layout: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}, "__metadata__": {str: str}},
then the tensors' bytes, each once, without gaps. Any other file is refused before memory is allocated for it.
Every safetensors reader opens the files written here. Source: github.com/huggingface/safetensors, format section.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from minigpt_cli.errors import MiniGPTError, RunDamaged
from minigpt_cli.storage import atomic_io
from minigpt_cli.storage.memory import check_memory

if TYPE_CHECKING:
    from torch import Tensor

HEADER_LIMIT = 8 << 20  # bytes; 1,000 layers need well under one
_CHUNK = 1 << 24

_DTYPES = {  # name in torch, bytes
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I64": ("int64", 8), "I32": ("int32", 4),
    "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
_NAMES = {f"torch.{name}": dtype for dtype, (name, _) in _DTYPES.items()}


class Recorded(Protocol):
    """The size and checksum of a file in a record."""

    @property
    def sha256(self) -> str: ...
    @property
    def bytes(self) -> int: ...


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in the header."""

    dtype: str  # as the format writes it: F32, BF16, …
    shape: tuple[int, ...]
    start: int  # bytes into the data section
    stop: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """The content of a file, each tensor checked; they share one buffer."""

    infos: dict[str, TensorInfo]
    data: bytearray
    metadata: dict[str, str]  # in the header
    sha256: str  # of all bytes

    def tensors(self) -> dict[str, Tensor]:
        """As torch tensors on the CPU."""
        return {name: _tensor(self.data, info) for name, info in self.infos.items()}

    def arrays(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """As NumPy arrays; None unless all are float32."""
        if any(info.dtype != "F32" for info in self.infos.values()):
            return None
        return {n: np.frombuffer(self.data, "<f4", info.n_elements, info.start).reshape(info.shape) for n, info in self.infos.items()}


def write(fd: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> atomic_io.Written:
    """Write a safetensors file to `fd`, one tensor in memory at a time; its size and checksum."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # wide types first keeps all aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in ordered:
        stop = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise MiniGPTError(f"a header of {atomic_io.size(len(text))} is more than a checkpoint may have ({atomic_io.size(HEADER_LIMIT)})")
    digest = hashlib.sha256()
    head = memoryview(struct.pack("<Q", len(text)) + text)
    for data in chain([head], (_bytes(tensor) for _, tensor in ordered)):
        digest.update(data)
        atomic_io.write_all(fd, data)
    return atomic_io.Written(digest.hexdigest(), 8 + len(text) + position)


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


def read_header(fd: int, where: Path) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """The checked header of an open file: tensors, metadata, and where the data section begins. Raises RunDamaged."""
    total = os.fstat(fd).st_size
    start = os.pread(fd, 8, 0)
    if len(start) < 8:
        raise RunDamaged(f"{where} is not a safetensors file: it has {total} bytes")
    length = struct.unpack("<Q", start)[0]
    if length > min(HEADER_LIMIT, total - 8):
        raise RunDamaged(f"{where} is damaged: its header claims {length:,} bytes")
    text = os.pread(fd, length, 8)
    header = atomic_io.parse_json(text, f"the header of {where}")
    if not isinstance(header, dict):
        raise RunDamaged(f"the header of {where} is not a table of tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise RunDamaged(f"the metadata in {where} is not a table of strings")
    infos = {name: _info(name, entry, where) for name, entry in header.items()}
    position = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != position:
            raise RunDamaged(f"{where} is damaged: tensor {_shown(name)} overlaps another or leaves a gap")
        position = info.stop
    if 8 + length + position != total:
        raise RunDamaged(f"{where} is damaged: its tensors need {8 + length + position:,} bytes and it has {total:,}")
    return infos, metadata, 8 + length


def _info(name: str, entry: Any, where: Path) -> TensorInfo:
    try:
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        width = _DTYPES[kind][1]
        integers = [*shape, start, stop]
        sound = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 1 << 48 for n in integers)
    except (KeyError, TypeError, ValueError) as error:
        raise RunDamaged(f"{where} is damaged: the entry of tensor {_shown(name)} is not understood") from error
    if not sound or stop - start != math.prod(shape) * width:
        raise RunDamaged(f"{where} is damaged: shape, type and size of tensor {_shown(name)} do not agree")
    return TensorInfo(kind, tuple(shape), start, stop)


def _shown(name: str) -> str:
    return atomic_io.one_line(repr(name), 80)


def read(path: Path, expected: Recorded | None = None, check: Callable[[dict[str, TensorInfo]], None] | None = None) -> TensorFile:
    """The content of a file, each tensor checked. `check` may refuse the header before memory is allocated for the rest.
    Raises RunDamaged, also if the file is not the `expected` one; OSError if it cannot be opened."""
    fd = atomic_io.open_regular(path)
    try:
        if expected is not None and (n_bytes := os.fstat(fd).st_size) != expected.bytes:
            raise RunDamaged(f"{path} has {n_bytes:,} bytes and its record says {expected.bytes:,}")
        infos, metadata, begin = read_header(fd, path)
        if check is not None:
            check(infos)
        data, sha256 = _read_data(fd, path, begin)
    finally:
        os.close(fd)
    if expected is not None and sha256 != expected.sha256:
        raise RunDamaged(f"{path} does not match its checksum")
    return TensorFile(infos, data, metadata, sha256)


Shapes = Mapping[str, tuple[int, ...]]


def check_shapes(path: Path, found: Mapping[str, TensorInfo], expected: Shapes, may_lack: Container[str] = ()) -> None:
    """Raise RunDamaged unless a file holds exactly the tensors of its configuration's model; it `may_lack` some."""
    for name, shape in expected.items():
        if name not in found:
            if name in may_lack:
                continue
            raise RunDamaged(f"{path} lacks the tensor {name} of its configuration")
        if found[name].shape != shape:
            raise RunDamaged(f"{path}: tensor {name} has shape {found[name].shape} and in its configuration {shape}")
    if surplus := found.keys() - expected.keys():
        unknown = atomic_io.one_line(min(surplus), 80)
        raise RunDamaged(f"{path} holds {len(surplus)} tensors that its configuration does not have: {unknown}")


def check_finite(where: object, tensors: Mapping[str, Tensor] | Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Raise RunDamaged, naming the tensor, if one of them holds NaN or infinity."""
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            finite = is_finite(tensor)
        else:
            finite = not tensor.is_floating_point() or is_finite(tensor.detach().float().cpu().numpy())
        if not finite:
            raise RunDamaged(
                f"{where} is damaged: tensor {_shown(name)} holds numbers that are not finite; use an earlier save or another file"
            )


def is_finite(array: npt.NDArray[np.float32]) -> bool:
    """Whether no number is NaN or infinite: one pass over memory, unless finite squares add up to infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _read_data(fd: int, path: Path, begin: int) -> tuple[bytearray, str]:
    n_bytes = os.fstat(fd).st_size - begin
    check_memory(n_bytes, f"the weights in {path}")
    digest = hashlib.sha256(os.pread(fd, begin, 0))
    data = bytearray(n_bytes)
    view, position = memoryview(data), 0
    os.lseek(fd, begin, os.SEEK_SET)
    while position < n_bytes:
        piece = os.read(fd, min(_CHUNK, n_bytes - position))
        if not piece:
            raise RunDamaged(f"{path} became shorter while it was read")
        view[position : position + len(piece)] = piece
        digest.update(piece)
        position += len(piece)
    return data, digest.hexdigest()


def _tensor(data: bytearray, info: TensorInfo) -> Tensor:
    import torch

    name, width = _DTYPES[info.dtype]
    dtype: torch.dtype = getattr(torch, name)
    if info.n_elements == 0:
        return torch.empty(info.shape, dtype=dtype)
    if info.start % width:  # allowed by the format; torch wants aligned views
        raw = torch.frombuffer(data, dtype=torch.uint8, count=info.stop - info.start, offset=info.start)
        return raw.clone().view(dtype).reshape(info.shape)
    if dtype is torch.bool:
        raw = torch.frombuffer(data, dtype=torch.uint8, count=info.n_elements, offset=info.start)
        return (raw != 0).reshape(info.shape)  # a byte that is neither 0 nor 1 is undefined behaviour as a bool
    return torch.frombuffer(data, dtype=dtype, count=info.n_elements, offset=info.start).reshape(info.shape)
