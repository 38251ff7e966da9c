"""`runs verify` names what is wrong with a run's files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli import checkpoints
from minigpt_cli.errors import MiniGPTError, RunDamaged
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import FileRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io, memory
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.verify import verify

from .runs import SETTINGS, problems, save


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
