"""Tensor files: those of the library, and a hostile one is refused in one line, in bounded memory."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from minigpt_cli import checkpoints
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError
from minigpt_cli.runstore import snapshots
from minigpt_cli.storage import safetensors as tensor_file

ALL_TYPES = {
    "f64": torch.randn(3, dtype=torch.float64),
    "f32": torch.randn(2, 3),
    "f16": torch.randn(5).half(),
    "bf16": torch.randn(1).bfloat16(),
    "i64": torch.arange(3),
    "i32": torch.arange(3, dtype=torch.int32),
    "i16": torch.arange(3, dtype=torch.int16),
    "i8": torch.arange(3, dtype=torch.int8),
    "u8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 4),
    "strided": torch.arange(6.0).reshape(2, 3).T,
}


def test_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    with (tmp_path / "ours").open("wb", buffering=0) as file:
        written = tensor_file.write(file.fileno(), ALL_TYPES, {"note": "hällo"})
    theirs = safetensors.torch.load_file(tmp_path / "ours")
    assert theirs.keys() == ALL_TYPES.keys()
    assert all(torch.equal(theirs[name], tensor) and theirs[name].dtype == tensor.dtype for name, tensor in ALL_TYPES.items())
    assert written == tuple(snapshots.checksum(tmp_path / "ours").model_dump().values())
    safetensors.torch.save_file({n: t.contiguous() for n, t in ALL_TYPES.items()}, tmp_path / "theirs", metadata={"note": "hällo"})
    file = tensor_file.read(tmp_path / "theirs")
    ours = file.tensors()
    assert all(torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype for name, tensor in ALL_TYPES.items())
    assert file.metadata == {"note": "hällo"}
    ours["f32"][:] = 0  # writable, and a file without tensors is a file too
    with (tmp_path / "none").open("wb", buffering=0) as empty:
        tensor_file.write(empty.fileno(), {}, {})
    assert checkpoints.load_tensors(tmp_path / "none") == {}


def raw(header: Any, data: bytes = b"", claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty": b"",
    "shorter than its length field": b"\x08\0\0",
    "a header of 2^63 bytes": raw({}, claimed=1 << 63),
    "a header of all the bytes and one more": raw({}, claimed=3),
    "a header of 100 MB": raw(b"{" + b" " * 9_000_000 + b"}"),
    "not JSON": raw(b"{nonsense"),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "nested deeply": raw(b"[" * 200_000),
    "a list": raw([]),
    "a key twice": raw(
        b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"
    ),
    "metadata that is no table": raw({"__metadata__": []}),
    "metadata of numbers": raw({"__metadata__": {"a": 1}}),
    "an entry that is a number": raw({"a": 1}),
    "an entry without offsets": raw({"a": {"dtype": "F32", "shape": [1]}}),
    "an unknown type": raw({"a": entry("F31")}, b"1234"),
    "a type that is a list": raw({"a": entry(["F32"])}, b"1234"),
    "a shape that is a number": raw({"a": entry(shape=1)}, b"1234"),
    "a shape of fractions": raw({"a": entry(shape=[1.0])}, b"1234"),
    "a shape of true": raw({"a": entry(shape=[True])}, b"1234"),
    "a negative shape": raw({"a": entry(shape=[-1])}, b"1234"),
    "a shape whose product overflows": raw({"a": entry(shape=[1 << 40, 1 << 40])}, b"1234"),
    "a shape of thousands of dimensions": raw({"a": entry(shape=[1] * 5000)}, b"1234"),
    "three offsets": raw({"a": entry(offsets=[0, 4, 8])}, b"1234"),
    "offsets backwards": raw({"a": entry(offsets=[4, 0])}, b"1234"),
    "negative offsets": raw({"a": entry(offsets=[-4, 0])}, b"1234"),
    "offsets beyond the end": raw({"a": entry(offsets=[0, 4])}, b"12"),
    "a size that does not fit the shape": raw({"a": entry(shape=[2])}, b"1234"),
    "overlapping tensors": raw({"a": entry(), "b": entry()}, b"1234"),
    "a gap between tensors": raw({"a": entry(), "b": entry(offsets=[8, 12])}, b"x" * 12),
    "bytes after the last tensor": raw({"a": entry()}, b"12345"),
    "a tensor of a tebibyte": raw({"a": entry(shape=[1 << 38], offsets=[0, 1 << 40])}, b"1234"),
    "a number of 5000 digits": raw(b'{"a": ' + b"1" * 5000 + b"}"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tensor_file_is_one_line(what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(HOSTILE[what])
    with pytest.raises(RunDamaged) as caught:
        checkpoints.load_tensors(tmp_path / "file")
    assert all(c.isprintable() for c in str(caught.value))


def test_terminal_escapes_in_tensor_names_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(raw({"\x1b[31mred": entry("F31")}, b"1234"))
    with pytest.raises(RunDamaged) as caught:
        checkpoints.load_tensors(tmp_path / "file")
    assert "\x1b" not in str(caught.value)


def test_odd_but_lawful_files_are_read(tmp_path: Path) -> None:
    header = {"byte": entry("U8", [1], [0, 1]), "float": entry("F32", [1], [1, 5]), "truth": entry("BOOL", [2], [5, 7])}
    (tmp_path / "file").write_bytes(raw(header, b"\x07" + struct.pack("<f", 1.5) + b"\x02\x00"))
    tensors = checkpoints.load_tensors(tmp_path / "file")
    assert tensors["float"].tolist() == [1.5]  # not aligned
    assert tensors["truth"].tolist() == [True, False]  # a 2 is no bool in memory


def test_a_sparse_file_of_a_tebibyte_is_refused_before_memory_is_spent(tmp_path: Path) -> None:
    size = 1 << 40
    with (tmp_path / "file").open("wb") as file:
        file.write(raw({"a": entry(shape=[size // 4], offsets=[0, size])}))
        file.truncate(file.tell() + size)
    with pytest.raises(MiniGPTError, match="of memory"):
        checkpoints.load_tensors(tmp_path / "file")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(raw({"a": entry()}, b"1234"))
    monkeypatch.setattr(os, "read", lambda fd, n: b"")
    with pytest.raises(RunDamaged, match="shorter"):
        checkpoints.load_tensors(tmp_path / "file")


def test_a_tensor_file_that_is_missing_a_link_a_folder_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(raw({}))
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot read"):
        checkpoints.load_tensors(tmp_path / "missing")
    for name in ("link", "pipe", "."):
        with pytest.raises(RunDamaged):
            checkpoints.load_tensors(tmp_path / name)


def test_a_header_too_large_to_be_read_is_not_written(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(MiniGPTError, match="header"):
        tensor_file.write(file.fileno(), {}, {"note": "x" * tensor_file.HEADER_LIMIT})
