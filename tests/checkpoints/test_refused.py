"""Checkpoints that do not check out are refused in one line, in bounded memory, executing nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from minigpt_cli import checkpoints
from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError, RunDamaged
from minigpt_cli.generation.open_run import open_model
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import FileRecord
from minigpt_cli.storage import atomic_io

from .runs import SETTINGS, problems, save


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
