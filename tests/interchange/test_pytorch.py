"""Other people's files: what is read, and what a hostile one gets."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.interchange import pickles, pytorch


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/minigpt-was-here",)


def test_plain_state_dicts_and_the_usual_nestings_are_read(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).view(2, 3)}
    for number, content in enumerate([state, {"model": state, "step": 3}, {"state_dict": state}]):
        torch.save(content, tmp_path / f"{number}.pt")
        found = pytorch.read(tmp_path / f"{number}.pt")
        assert list(found.tensors) == ["a.weight"]
        assert torch.equal(found.tensors["a.weight"], state["a.weight"])
    assert pytorch.read(tmp_path / "1.pt").other == {"step": 3}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_come_off(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}a": torch.zeros(1), f"{prefix}b": torch.zeros(1)}, tmp_path / "x.pt")
    found = pytorch.read(tmp_path / "x.pt")
    assert list(found.tensors) == ["a", "b"]
    assert any(prefix.split(".")[0] in note for note in found.notes)


def test_a_prefix_that_only_some_names_have_stays() -> None:
    names = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert pytorch.without_prefixes(names) == (names, [])


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "bare.pt"):
        with pytest.raises(UsageError, match=name):
            pytorch.read(tmp_path / name)
    assert not Path("/tmp/minigpt-was-here").exists()


def test_pickles_are_refused_with_a_vulnerable_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    for version in ("2.5.1+cpu", "2.9.1", "strange"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(UsageError, match="CVE-2026-24747"):
            pytorch.read(tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    assert pytorch.read(tmp_path / "x.pt").tensors


def test_archives_that_unpack_larger_than_they_are_get_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * (1 << 20))
    with pytest.raises(UsageError, match="uncompressed"):
        pytorch.read(tmp_path / "bomb.pt")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PK\x03\x04" + b"\0" * 500, b"\x80\x02}q\x00.", b"hello"])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ".zip"])
def test_damaged_files_end_in_one_line(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    with pytest.raises(MiniGPTError) as caught:
        pytorch.read(path)
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_checkpoint_ends_in_one_line(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    for length in range(0, len(data), 37):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises(MiniGPTError):
            pytorch.read(tmp_path / "cut.pt")


@pytest.mark.filterwarnings("ignore")  # torch's, about making these
@pytest.mark.parametrize("kind", ["sparse", "csr", "quantized", "meta", "nested", "complex", "expanded"])
def test_what_torch_calls_a_tensor_without_ordinary_rows_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    made: dict[str, Callable[[], torch.Tensor]] = {
        "sparse": lambda: torch.eye(4).to_sparse(),
        "csr": lambda: torch.eye(4).to_sparse_csr(),
        "quantized": lambda: torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8),
        "meta": lambda: torch.empty(4, 4, device="meta"),
        "nested": lambda: torch.nested.nested_tensor([torch.eye(4)]),
        "complex": lambda: torch.eye(4, dtype=torch.complex64),
        "expanded": lambda: torch.zeros(1).expand(1 << 30, 1 << 30),  # four bytes that claim to be four exabytes
    }
    torch.save({"model": {"a.weight": torch.eye(4), "b.weight": made[kind]()}}, tmp_path / "x.pt")
    with pytest.raises(MiniGPTError, match=r"tensor b\.weight") as caught:
        pytorch.read(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


# ---- meta.pkl


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_meta_of_every_protocol_is_read_without_unpickling(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    characters = sorted(set("to be, or not\nné 漢🙂"))
    itos = dict(enumerate(characters))
    meta = {"vocab_size": len(characters), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "load", None)
    assert pickles.read_meta(tmp_path / "meta.pkl") == characters


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_meta_that_asks_for_anything_else_is_refused(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: Evil()}}, protocol))
    with pytest.raises(UsageError, match="only a table of characters"):
        pickles.read_meta(tmp_path / "meta.pkl")
    assert not Path("/tmp/minigpt-was-here").exists()


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"itos": {}},
        {"itos": {1: "a"}},
        {"itos": {0: "ab"}},
        {"itos": {0: "a", 1: "a"}},
        {"itos": {0: 1}},
        {"itos": {"0": "a"}},
        {"itos": {0: "\ud800"}},
    ],
)
def test_tables_that_are_not_characters_by_id_are_refused(tmp_path: Path, meta: object) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(UsageError, match=r"meta\.pkl"):
        pickles.read_meta(tmp_path / "meta.pkl")


def test_every_mutation_of_a_meta_is_read_or_refused(tmp_path: Path) -> None:
    data = bytearray(pickle.dumps({"vocab_size": 2, "itos": {0: "a", 1: "b"}, "stoi": {"a": 0, "b": 1}}))
    path = tmp_path / "meta.pkl"
    for position in range(len(data)):
        for value in (0, 1, 0x28, 0x2E, 0x7F, 0x80, 0xFF):
            mutated = data.copy()
            mutated[position] = value
            path.write_bytes(mutated)
            with suppress(UsageError):
                characters = pickles.read_meta(path)
                assert len(set(characters)) == len(characters) > 0
                assert all(len(character) == 1 for character in characters)


def test_a_meta_of_nothing_but_marks_takes_no_time() -> None:
    began = time.monotonic()
    with pytest.raises(UsageError, match="not a sound pickle"):
        pickles.read_plain(b"\x80\x04" + b"K\x00" * 100_000 + b"(d" * 100_000 + b"s.", "it")  # was searched from the start for each mark
    assert time.monotonic() - began < 20  # of minutes


def test_a_meta_has_no_more_instructions_than_a_table_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MOST", 1000)
    with pytest.raises(UsageError, match="instructions"):
        pickles.read_plain(b"\x80\x04" + b"}" * 2000 + b".", "it")
