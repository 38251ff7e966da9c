"""Checkpoints: what is saved is what is loaded; what does not check out is refused in one line, in bounded memory, executing nothing."""

from __future__ import annotations

import errno
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from minigpt_cli import checkpoints
from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError
from minigpt_cli.generation.open_run import open_model
from minigpt_cli.models import lora
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Base, Best, FileRecord, RunRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io, memory
from minigpt_cli.storage import safetensors as tensor_file
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.verify import verify

LETTERS = "abcdefghijk"
SETTINGS = RunConfig.model_validate({"model": {"arch": "modern", "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}})
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


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run directory before its first save."""
    run = RunStore(tmp_path / "runs").create("run")
    run.write_config(SETTINGS)
    run.write_tokenizer(CharTokenizer([ord(c) for c in LETTERS]).to_json())
    run.write_record(RunRecord(name="run", vocab_size=11))
    return run


def save(run: Run, step: int, *, best: bool = True, **fields: Any) -> RunRecord:
    weights = build_model(SETTINGS.model, 11, seed=step).state_dict()
    update: dict[str, Any] = {"stop_step": step, **fields}
    if best:
        update["best"] = Best(step=step, nats_per_token=1.0, nats_per_char=1.0)
    record = run.record.model_copy(update=update)
    resume = {"moment": torch.full((2,), float(step))}
    return checkpoints.save(run, record, last=weights, resume=resume, resume_state={"step": step}, best=weights if best else None)


def problems(run: Run) -> dict[str, str]:
    return {finding.file: finding.message for finding in verify(Run(run.dir)) if finding.level == "problem"}


# ---- what is saved is what is loaded


def test_a_model_survives_its_run_directory(run: Run) -> None:
    save(run, 3)
    save(run, 4, best=False)
    model = build_model(SETTINGS.model, 11, seed=3).eval()
    ids = torch.randint(11, (2, 8))
    best, last = checkpoints.load(run, "best"), checkpoints.load(run, "last")
    assert torch.equal(best.model(ids).logits, model(ids).logits)
    assert (best.step, last.step, best.notices, best.model.training) == (3, 4, [], False)
    assert best.tokenizer.decode(best.tokenizer.encode("abba")) == "abba"
    assert best.config == SETTINGS
    point = checkpoints.load_resume(run)
    assert point.resume_state == {"step": 4}
    assert torch.equal(point.resume["moment"], torch.tensor([4.0, 4.0]))
    assert not problems(run)


def test_a_run_without_a_best_gives_its_last_aloud(run: Run) -> None:
    save(run, 5, best=False)
    loaded = checkpoints.load(run)
    assert loaded.step == 5
    assert "no best checkpoint yet" in loaded.notices[0]


def test_a_run_that_never_saved_says_so(run: Run) -> None:
    for load in (checkpoints.load, checkpoints.load_resume):
        with pytest.raises(RunDamaged, match="has not saved a checkpoint yet"):
            load(run)
    assert "names no files" in problems(run)["run.json"]
    with pytest.raises(UsageError, match="choose best or last"):
        checkpoints.load(run, "first")


def test_the_generation_before_is_used_aloud_and_a_save_brings_a_whole_one_back(run: Run) -> None:
    save(run, 1)
    save(run, 2)
    run.file("last.safetensors").write_bytes(b"damaged")
    snapshots.forget()
    assert checkpoints.load(run, "best").notices == []  # that file is whole
    for loaded in (checkpoints.load(run, "last"), checkpoints.load_resume(run)):
        assert "damaged or incomplete" in loaded.notices[0]
        assert "of step 1" in loaded.notices[0]
    point = checkpoints.load_resume(run)
    record = checkpoints.continue_from(run, point, point.record, point.config)
    assert record.stop_step == 1
    assert checkpoints.load_resume(run).notices == []
    assert not problems(run)


def test_a_missing_file_falls_back_and_two_damaged_generations_are_an_error(run: Run) -> None:
    save(run, 1)
    save(run, 2)
    run.file("config.json").unlink()
    assert "config.json is missing" in checkpoints.load(run).notices[0]
    (run.dir / "previous" / "run.json").unlink()
    with pytest.raises(RunDamaged, match="previous save is unusable too"):
        checkpoints.load(run)


def test_a_previous_that_is_a_link_is_not_followed(run: Run, tmp_path: Path) -> None:
    save(run, 1)
    save(run, 2)
    os.rename(run.dir / "previous", tmp_path / "elsewhere")
    (run.dir / "previous").symlink_to(tmp_path / "elsewhere")
    before = {p.name: p.read_bytes() for p in (tmp_path / "elsewhere").iterdir()}
    assert problems(run)["previous"] == "is not a folder"
    save(run, 3)
    assert not (run.dir / "previous").is_symlink()
    assert {p.name: p.read_bytes() for p in (tmp_path / "elsewhere").iterdir()} == before
    run.file("run.json").unlink()
    assert checkpoints.load(run).step == 2


def test_a_damaged_best_is_not_kept_without_an_error(run: Run) -> None:
    record = save(run, 1)
    run.file("best.safetensors").write_bytes(b"x" * run.file("best.safetensors").stat().st_size)
    snapshots.forget()
    with pytest.raises(RunDamaged, match="does not match its checksum"):
        save(run, 2, best=False, files=record.files)


def test_a_file_that_is_no_longer_part_of_the_run_leaves_previous_too(run: Run) -> None:
    save(run, 1)
    save(run, 2)
    (run.dir / "previous" / "stranger").write_text("")
    save(run, 3)
    assert sorted(p.name for p in (run.dir / "previous").iterdir()) == [
        "best.safetensors", "config.json", "last.safetensors", "resume.safetensors", "run.json", "tokenizer.json",
    ]  # fmt: skip


def test_saving_twice_costs_no_second_copy_of_an_unchanged_best(run: Run) -> None:
    save(run, 1)
    save(run, 2, best=False)
    assert os.path.samefile(run.file("best.safetensors"), run.dir / "previous" / "best.safetensors")


def test_resuming_with_nothing_changed_keeps_the_older_generation(run: Run) -> None:
    save(run, 1)
    save(run, 2)
    point = checkpoints.load_resume(run)
    checkpoints.continue_from(run, point, point.record, point.config)
    assert atomic_io.read_json(run.dir / "previous" / "run.json")["stop_step"] == 1


def test_a_full_disk_is_known_before_anything_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    before = {p: p.read_bytes() for p in run.dir.rglob("*") if p.is_file()}
    real = os.statvfs(run.dir)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result([*real[:4], 3, *real[5:]]))
    with pytest.raises(MiniGPTError, match=f"are needed: free some space and go on with --resume {run.name}"):
        save(run, 2)
    assert {p: p.read_bytes() for p in run.dir.rglob("*") if p.is_file()} == before


def test_a_reader_waits_out_a_save_of_a_living_writer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    save(run, 2)
    whole = run.file("last.safetensors").read_bytes()
    run.file("last.safetensors").write_bytes(b"")
    slept: list[float] = []

    def finish(seconds: float) -> None:
        slept.append(seconds)
        run.file("last.safetensors").write_bytes(whole)

    with RunStore(run.dir.parent).lock(run):
        monkeypatch.setattr(time, "sleep", finish)
        assert checkpoints.load(run, "last").notices == []
        assert len(slept) == 1
        run.file("last.safetensors").write_bytes(b"")
        monkeypatch.setattr(time, "sleep", slept.append)
        assert "damaged or incomplete" in checkpoints.load(run, "last").notices[0]
        assert any("process is training" in finding.message for finding in verify(run))


# ---- safetensors


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


# ---- weights against configuration


def forge(run: Run, name: str, data: bytes) -> None:
    """Replace a file as a stranger would: with a record that vouches for it."""
    run.file(name).write_bytes(data)
    record = run.refresh().record
    files = {**record.files, name: FileRecord(sha256=atomic_io.sha256(data), bytes=len(data))}
    run.file("run.json").write_text(record.model_copy(update={"files": files}).to_json())
    run.refresh()
    snapshots.forget()


def tensors_of(run: Run, change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    tensors = dict(checkpoints.load_tensors(run.file("best.safetensors")))
    change(tensors)
    return safetensors.torch.save(tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("head.weight"), "lacks the tensor head.weight"),
        (lambda t: t.update(stranger=torch.ones(1)), "does not have"),
        (lambda t: t.update({"head.weight": torch.ones(1)}), "in its configuration"),
        (lambda t: t.clear(), "too few"),
    ],
)
def test_weights_that_do_not_fit_their_configuration_are_refused(change: Any, words: str, run: Run) -> None:
    save(run, 1)
    forge(run, "best.safetensors", tensors_of(run, change))
    with pytest.raises(RunDamaged, match=words):
        checkpoints.load(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["best", "last"])
def test_weights_that_are_not_finite_are_refused_by_every_reader_and_found_by_verify(name: str, value: float, run: Run) -> None:
    save(run, 1)
    file = f"{name}.safetensors"
    forge(run, file, tensors_of(run, lambda t: t["token_embedding.weight"][3].fill_(value)))
    says = f"{file} is damaged: tensor .?token_embedding.weight.? holds numbers that are not finite"
    with pytest.raises(RunDamaged, match=says):
        checkpoints.load(run, name)
    with pytest.raises(RunDamaged, match=says):
        open_model(run, name)
    assert "token_embedding.weight" in problems(run)[file]
    if name == "last":
        with pytest.raises(RunDamaged, match=says):
            checkpoints.load_resume(run)


def test_finite_weights_whose_sum_is_not_are_read(run: Run) -> None:
    save(run, 1)
    forge(run, "best.safetensors", tensors_of(run, lambda t: t["token_embedding.weight"].fill_(3e38)))
    assert checkpoints.load(run).step == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"n_layer": 1024}, "too few"),
        ({"n_embd": 1 << 16}, "in its configuration"),
        ({"block_size": 1 << 20, "n_embd": 1 << 16, "n_head": 1}, "in its configuration"),
        ({"n_layer": 10**9}, "n_layer"),
        ({"arch": "bigram"}, "n_layer"),
    ],
)
def test_a_configuration_of_absurd_size_costs_no_memory(changes: dict[str, Any], error: str, run: Run) -> None:
    save(run, 1)
    plain = SETTINGS.model_dump(mode="json")
    forge(run, "config.json", json.dumps({**plain, "model": {**plain["model"], **changes}}).encode())
    begin = time.monotonic()
    with pytest.raises(RunDamaged, match=error):
        checkpoints.load(run)
    assert time.monotonic() - begin < 5


def test_a_model_is_measured_before_it_is_made() -> None:
    model = build_model(SETTINGS.model, 11)
    assert checkpoints.check_model_fits(SETTINGS.model, 11) == sum(p.numel() for p in model.parameters())
    huge = RunConfig.model_validate({"model": {"arch": "modern", "n_layer": 1024, "n_embd": 1 << 16, "n_head": 1024}})
    with pytest.raises(MiniGPTError, match="of memory"):
        checkpoints.check_model_fits(huge.model, 50_257, copies=4)


@pytest.mark.parametrize("metadata", [None, {"resume_state": "[]"}, {"resume_state": "{"}, {"resume_state": '{"a": NaN}'}])
def test_a_training_state_that_is_none_is_refused(metadata: dict[str, str] | None, run: Run) -> None:
    save(run, 1)
    forge(run, "resume.safetensors", safetensors.torch.save({"a": torch.ones(1)}, metadata))
    with pytest.raises(RunDamaged):
        checkpoints.load_resume(run)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"{\xff",
        b"{}",
        b"/etc/passwd",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": {"type": "WordLevel", "vocab": {"a": 99999999999}}}',
    ],
)
def test_a_hostile_tokenizer_is_refused(data: bytes, run: Run) -> None:
    save(run, 1)
    forge(run, "tokenizer.json", data)
    with pytest.raises(RunDamaged, match=r"tokenizer\.json"):
        checkpoints.load(run)


def test_a_record_that_forgets_a_file_is_refused(run: Run) -> None:
    save(run, 1)
    record = run.record
    files = {name: file for name, file in record.files.items() if name != "resume.safetensors"}
    run.file("run.json").write_text(record.model_copy(update={"files": files}).to_json())
    with pytest.raises(RunDamaged, match=r"names no resume\.safetensors"):
        checkpoints.load_resume(run)


# ---- verify


def test_verify_names_each_file_that_is_wrong(run: Run) -> None:
    assert "note" in {finding.level for finding in verify(run)}
    save(run, 1)
    save(run, 2)
    assert not problems(run)
    for name in ("last.safetensors", "config.json", "tokenizer.json", "resume.safetensors"):
        data = run.file(name).read_bytes()
        run.file(name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        snapshots.forget()
        assert name in problems(run)
        run.file(name).write_bytes(data + b"x")
        assert name in problems(run)
        run.file(name).unlink()
        assert name in problems(run)
        run.file(name).write_bytes(data)
    (run.dir / "previous" / "run.json").write_text("{}")
    run.file("metrics.jsonl").write_text("nonsense\n")
    run.file("annotations.json").write_text("[]")
    assert {"previous/run.json", "metrics.jsonl", "annotations.json"} <= problems(run).keys()


def test_verify_never_leaves_the_run_directory(run: Run, tmp_path: Path) -> None:
    save(run, 1)
    (tmp_path / "outside").write_text("secret")
    record = run.record
    files = {**record.files, "../../outside": FileRecord(sha256=atomic_io.sha256(b"secret"), bytes=6)}
    run.file("run.json").write_text(record.model_copy(update={"files": files}).to_json())
    assert any("outside of the run" in finding.message for finding in verify(run))


def test_verify_finds_a_vocabulary_of_another_size(run: Run) -> None:
    save(run, 1, vocab_size=12)
    assert "12" in problems(run)["tokenizer.json"]


def test_verify_finds_a_tokenizer_that_loses_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    monkeypatch.setattr(CharTokenizer, "encode", lambda self, text: [])
    assert "does not give the encoded text back" in problems(run)["tokenizer.json"]


def test_verify_finds_metrics_that_lost_their_end_and_a_file_of_another_content(run: Run) -> None:
    run.file("metrics.jsonl").write_text('{"event": "other"}\n' * 3)
    save(run, 1)
    run.file("metrics.jsonl").write_text('{"event": "other"}\n')
    assert "the record says" in problems(run)["metrics.jsonl"]


def test_nothing_larger_than_the_memory_is_read_for_its_checksum(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    monkeypatch.setattr(memory, "physical_memory", lambda: 10)
    with pytest.raises(RunDamaged, match="more than this machine's memory"):
        snapshots.checksum(run.file("last.safetensors"))
    assert snapshots.checksum(run.file("last.safetensors"), 5).bytes == 5


def test_a_file_in_the_place_of_previous_makes_room(run: Run) -> None:
    save(run, 1)
    (run.dir / "previous").write_text("in the way")
    save(run, 2)
    assert (run.dir / "previous" / "run.json").exists()


def test_a_damaged_newest_is_still_found_by_name_where_the_save_before_it_is_whole(run: Run) -> None:
    save(run, 1)
    save(run, 2)
    run.file("run.json").write_text("{}")
    store = RunStore(run.dir.parent)
    assert checkpoints.load(store.find("run")).step == 1
    (run.dir / "previous" / "run.json").write_text("{}")
    with pytest.raises(RunDamaged, match="is damaged"):
        store.find("run")


def test_a_save_over_an_unreadable_record_leaves_the_generation_before_alone(run: Run) -> None:
    save(run, 1)
    record = save(run, 2)
    run.file("run.json").write_text("{}")
    weights = build_model(SETTINGS.model, 11, seed=3).state_dict()
    later = record.model_copy(update={"stop_step": 3})
    checkpoints.save(run, later, last=weights, resume={}, resume_state={"step": 3})
    assert atomic_io.read_json(run.dir / "previous" / "run.json")["stop_step"] == 1
    assert checkpoints.load(run, "last").step == 3


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_configuration_that_is_damaged_is_that_of_the_save_before_with_its_record(damage: str, run: Run) -> None:
    save(run, 1)
    save(run, 2)
    run.file("config.json").unlink()
    if damage == "changed":
        run.file("config.json").write_text(SETTINGS.model_copy(update={"seed": 99}).model_dump_json())
    again = Run(run.dir)
    assert again.config == SETTINGS
    assert again.record.stop_step == 1


def test_without_hard_links_generations_are_copies(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    save(run, 1)
    save(run, 2)
    assert not problems(run)
    assert not os.path.samefile(run.file("config.json"), run.dir / "previous" / "config.json")
    run.file("last.safetensors").write_bytes(b"rotten")
    assert checkpoints.load(Run(run.dir), "last").step == 1


def test_a_link_that_fails_for_another_reason_leaves_nothing_behind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "broken")

    save(run, 1)
    monkeypatch.setattr(os, "link", broken)
    with pytest.raises((OSError, MiniGPTError), match=r"broken|input/output error"):
        save(run, 2)
    monkeypatch.undo()
    assert not [path for path in run.dir.rglob("*") if path.name.endswith(atomic_io.TEMPORARY)]
    assert checkpoints.load(Run(run.dir)).step == 1


def test_a_file_half_staged_is_removed(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_io.staged(tmp_path / "file") as (fd, _):
            os.write(fd, b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


# ---- adapters stand on the weights of another run


def adapters(run: Run, name: str, base: Base | None, seed: int = 5, **shape: Any) -> Run:
    """A saved run of adapters on `base`."""
    settings = RunConfig.model_validate({"model": {**SETTINGS.model.model_dump(), **shape}, "lora": {"lora_rank": 2}})
    tuned = RunStore(run.dir.parent).create(name)
    tuned.write_config(settings)
    tuned.write_tokenizer(CharTokenizer([ord(c) for c in LETTERS]).to_json())
    model = build_model(settings.model, 11, seed=seed)
    lora.attach(model, settings.lora, seed)
    record = RunRecord(name=name, vocab_size=11, stop_step=3, base=base)
    tuned.write_record(record)
    checkpoints.save(tuned, record, last=lora.trained(model, model.state_dict()), resume={}, resume_state={"step": 3})
    return tuned


def test_adapters_need_the_weights_that_they_name(run: Run) -> None:
    saved = save(run, 1, best=False)
    base = Base(run="run", sha256=saved.files["last.safetensors"].sha256)
    assert checkpoints.load(adapters(run, "good", base)).step == 3
    with pytest.raises(RunDamaged, match="does not name their base"):
        checkpoints.load(adapters(run, "nobody", None))
    with pytest.raises(RunDamaged, match=r"no run in .* has those weights"):
        checkpoints.load(adapters(run, "gone", Base(run="run", sha256="0" * 64)))
    with pytest.raises(RunDamaged, match="adapters for another model"):
        checkpoints.load(adapters(run, "wider", base, n_embd=32))


def test_adapters_on_adapters_end_somewhere(run: Run) -> None:
    sha256 = save(run, 1, best=False).files["last.safetensors"].sha256
    name = "run"
    for number in range(20):
        tuned = adapters(run, f"on-{number}", Base(run=name, sha256=sha256), seed=number)
        name, sha256 = tuned.name, tuned.refresh().record.files["last.safetensors"].sha256
    with pytest.raises(MiniGPTError, match="merge one with"):
        checkpoints.load(tuned)
