"""Checkpoints: what is saved is what is loaded, the generation before where the newest is damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError
from minigpt_cli.models import lora
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Base, RunRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.verify import verify

from .runs import LETTERS, SETTINGS, problems, save


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
    with pytest.raises(UsageError, match="choose best, last or a step"):
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
