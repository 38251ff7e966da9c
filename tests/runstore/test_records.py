"""Records, metrics and annotations: what is written is what is read, and what is damaged is named."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError
from minigpt_cli.events import Skipped
from minigpt_cli.runstore import records
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import RECORD_SCHEMA_VERSION, Annotations, FileRecord, RunRecord
from minigpt_cli.runstore.store import RunStore

from .runs import evaluated, make


def test_a_record_survives_the_disk(store: RunStore) -> None:
    run = make(store, "a", 1.5)
    record = run.write_record(run.record.model_copy(update={"stop_reason": "max_steps", "argv": ["minigpt", "tränieren"]}))
    assert Run(run.dir).record == record
    assert json.loads(run.file("run.json").read_text("utf-8"))["argv"][1] == "tränieren"


def test_a_record_that_changed_by_one_digit_is_noticed(store: RunStore) -> None:
    run = make(store, "a", 1.5)
    run.file("run.json").write_text(run.file("run.json").read_text().replace("1.5", "1.4", 1))
    with pytest.raises(RunDamaged, match="its own checksum"):
        _ = run.record


def test_a_record_with_other_whitespace_is_read(store: RunStore) -> None:
    run = make(store, "a", 1.5)
    run.file("run.json").write_text(json.dumps(json.loads(run.file("run.json").read_text()), indent=7, sort_keys=True))
    assert run.record.best is not None


def test_a_record_of_a_newer_minigpt_says_so(store: RunStore) -> None:
    run = make(store, "a")
    run.file("run.json").write_text(json.dumps({"schema_version": RECORD_SCHEMA_VERSION + 1}))
    with pytest.raises(RunDamaged, match="newer minigpt"):
        _ = run.record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        '{"name": "x"}',
        "\xff\xfe",
        "1" * 5000,
        '{"\\ud800": 1}',
    ],
)
def test_json_that_is_not_a_record_is_one_line(store: RunStore, text: str) -> None:
    run = make(store, "a")
    run.file("run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunDamaged) as caught:
        _ = run.record
    assert "\n" not in str(caught.value)


def test_a_valid_checksum_does_not_excuse_a_wrong_schema(store: RunStore) -> None:
    run = make(store, "a")
    content = run.record.model_dump(mode="json") | {"elapsed_s": -1.0, "status": "nonsense"}
    run.file("run.json").write_text(json.dumps({**content, "checksum": records._checksum(content)}))
    with pytest.raises(RunDamaged, match="not a record of a run"):
        _ = run.refresh().record


def test_a_huge_record_is_refused_before_it_is_read(store: RunStore) -> None:
    run = make(store, "a")
    with run.file("run.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(RunDamaged, match="more than the"):
        _ = run.record


def test_a_loss_that_is_not_finite_is_stored_as_none() -> None:
    assert RunRecord(name="a", final_val_loss=float("nan"), final_train_loss=float("inf")).final_val_loss is None


def test_a_config_with_a_billion_layers_or_a_nan_rate_is_refused(store: RunStore) -> None:
    run = make(store, "a")
    plain = RunConfig().model_dump(mode="json")
    for section, field, value in (
        ("model", "n_layer", 10**9),
        ("optim", "lr", "NaN"),
        ("model", "block_size", -1),
        ("model", "surprise", 1),
    ):
        run.file("config.json").write_text(json.dumps({**plain, section: {**plain[section], field: value}}))
        with pytest.raises(RunDamaged, match=field):
            _ = run.refresh().config
    run.write_config(RunConfig())
    assert run.config == RunConfig()


def test_write_record_never_changes_which_generation_it_names(store: RunStore) -> None:
    run = make(store, "a", files={"last.safetensors": FileRecord(sha256="0" * 64, bytes=3)}, metrics_bytes=5)
    run.write_record(RunRecord(name="a"))
    assert run.record.files["last.safetensors"].bytes == 3
    assert run.record.metrics_bytes == 5


def test_metrics_are_what_was_appended(store: RunStore) -> None:
    run = make(store, "a")
    assert list(run.metrics()) == []
    run.truncate_metrics(0)
    for step in (1, 2):
        run.append(evaluated(step))
    run.append(Skipped(run="a", step=2, reason="loss nan"))
    length = run.file("metrics.jsonl").stat().st_size
    run.append(evaluated(3))
    assert [e.step for e in run.metrics()] == [1, 2, 3]
    run.truncate_metrics(length)
    run.truncate_metrics(length + 100)
    assert [e.step for e in run.metrics()] == [1, 2]


def test_a_metrics_line_that_is_still_being_written_is_not_there_yet(store: RunStore) -> None:
    run = make(store, "a")
    run.append(evaluated(1))
    with run.file("metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "evalua')
    assert [e.step for e in run.metrics()] == [1]


@pytest.mark.parametrize("line", [b"garbage\n", b'{"event": "evaluated"}\n', b'{"event": "evaluated", "step": NaN}\n', b"x" * (2 << 20)])
def test_a_damaged_metrics_line_is_named(store: RunStore, line: bytes) -> None:
    run = make(store, "a")
    run.file("metrics.jsonl").write_bytes(line)
    with pytest.raises(RunDamaged, match=r"metrics\.jsonl"):
        list(run.metrics())


def test_metrics_are_neither_read_nor_written_through_a_link(store: RunStore, tmp_path: Path) -> None:
    run = make(store, "a")
    (tmp_path / "victim").write_text("precious\n")
    run.file("metrics.jsonl").symlink_to(tmp_path / "victim")
    for action in (lambda: run.append(evaluated(1)), lambda: run.truncate_metrics(0), lambda: list(run.metrics())):
        with pytest.raises(RunDamaged, match="symbolic link"):
            action()
    assert (tmp_path / "victim").read_text() == "precious\n"


def test_metrics_that_cannot_be_read_are_one_line(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(store, "a")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "no", "metrics.jsonl")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(MiniGPTError, match="permission denied"):
        list(run.metrics())


def test_a_full_disk_leaves_no_half_line(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(store, "a")
    run.append(evaluated(1))
    real = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(28, "full")
        return real(fd, bytes(data)[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(MiniGPTError, match="disk is full"):
            run.append(evaluated(2))
    assert run.file("metrics.jsonl").read_bytes().count(b"\n") == 1
    assert run.file("metrics.jsonl").read_bytes().endswith(b"\n")


def test_annotations(store: RunStore) -> None:
    run = make(store, "a")
    assert run.annotations == Annotations()
    run.annotate(lambda before: Annotations(tags=[*before.tags, "good"], note="the one with dropout"))
    assert run.annotations.tags == ["good"]
    run.file("annotations.json").write_text('{"tags": 3}')
    with pytest.raises(RunDamaged, match="tags"):
        _ = run.annotations


@pytest.mark.parametrize("change", [lambda _: Annotations(tags=["x" * 61]), lambda _: Annotations(note="x" * (1 << 20))])
def test_a_refused_mark_leaves_no_file(change: Callable[[Annotations], Annotations], store: RunStore) -> None:
    run = make(store, "a")
    before = sorted(run.dir.iterdir())
    with pytest.raises(UsageError):
        run.annotate(change)
    assert sorted(run.dir.iterdir()) == before


def test_what_is_no_file_is_not_written_to(store: RunStore) -> None:
    run = make(store, "a")
    assert repr(run).startswith("Run(")
    for create in (os.mkfifo, os.mkdir):
        create(run.file("metrics.jsonl"))
        with pytest.raises(RunDamaged, match="not a regular file"):
            run.append(evaluated(1))
        run.file("metrics.jsonl").unlink() if create is os.mkfifo else run.file("metrics.jsonl").rmdir()


def test_readers_never_see_a_half_written_file(store: RunStore) -> None:
    run = make(store, "a", 1.0)
    done = threading.Event()

    def write() -> None:
        for step in range(150):
            run_for_writing = Run(run.dir)
            run_for_writing.append(evaluated(step))
            run_for_writing.write_record(RunRecord(name="a", stop_step=step, argv=["x" * (step % 50) * 100]))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    last, reads = -1, 0
    while not done.is_set() or reads == 0:
        found = store.list()[0]
        assert isinstance(found, Run)
        assert found.record.stop_step >= last or reads < 2
        last = found.record.stop_step
        steps = [e.step for e in found.metrics()]
        assert steps == list(range(len(steps)))
        reads += 1
    writer.join()
