"""The run store: names, locks, records, metrics, leaderboard; readers that never see half a file, writers that never share a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.sabotage import Killed, Saboteur

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError, RunDamaged, RunLocked, RunNotFound, UsageError
from minigpt_cli.evaluation.leaderboard import rank
from minigpt_cli.events import Evaluated, Skipped
from minigpt_cli.runstore import directory, records
from minigpt_cli.runstore.directory import DamagedRun, Run
from minigpt_cli.runstore.records import RECORD_SCHEMA_VERSION, Annotations, Best, Corpus, FileRecord, RunRecord, SplitRecord, now
from minigpt_cli.runstore.store import RunStore, resolve_runs_dir
from minigpt_cli.storage import atomic_io


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def make(
    store: RunStore, name: str, nats: float | None = None, *, text: str = "a" * 64, at: str = "2026-01-01T00:00:00Z", **fields: object
) -> Run:
    run = store.create(name)
    split = SplitRecord(sha256=text, n_tokens=10, n_chars=10, n_bytes=10)
    record = RunRecord(
        name=name,
        created_at=at,
        status="finished",
        arch="modern",
        corpus=Corpus(label="text", sha256=text, splits={"val": split}),
        best=None if nats is None else Best(step=1, nats_per_token=nats, nats_per_char=nats, ci95=(nats - 0.1, nats + 0.1)),
    ).model_copy(update=fields)
    atomic_io.write_atomic(run.file("run.json"), record.model_copy(update={"updated_at": at}).to_json())
    return run


def evaluated(step: int) -> Evaluated:
    return Evaluated(
        run="r",
        step=step,
        train_loss=1.0,
        val_loss=1.0,
        nats_per_char=1.0,
        lr=1e-3,
        tokens_seen=1,
        tokens_per_s=1.0,
        elapsed_s=1.0,
        is_best=True,
    )


# ---- names


@pytest.mark.parametrize("name", ["a", "modern-1", "lr=1e-4,dropout=0.1", "été", "x" * 100, "a.b+c@d~e"])
def test_a_plain_name_is_accepted(store: RunStore, name: str) -> None:
    assert store.create(name).dir.is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc",
        "-rf",
        ".hidden",
        "a\n",
        "a\x1b[31m",
        "a\x00b",
        "a b",
        "x" * 101,
        "日" * 80,
        "latest",
        "top",
        "a.tmp",
        "a.",
        "_a",
    ],
)
def test_a_name_that_could_do_harm_is_refused_in_one_line(store: RunStore, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        store.create(name)
    assert all(c.isprintable() for c in str(caught.value))
    assert not store.dir.exists()


@pytest.mark.parametrize(
    "name",
    ["a\u202eb", "m\u043edern", "\u0430", "\u0391b", "\ufb01ne", "\uff4dodern", "x\u00b2", "mod\u200bern", "mod\u0065\u0301rn",
     "\u212aelvin", "a ", "a\u00a0b", "\u0561\u0062", "mo\u217dern", "\u24b6"],
)  # fmt: skip
def test_a_name_of_look_alike_letters_is_refused_in_one_line(store: RunStore, name: str) -> None:
    store.create("a")
    with pytest.raises(UsageError) as caught:
        store.create(name)
    assert all(c.isprintable() for c in str(caught.value))
    assert store.names() == ["a"]


@pytest.mark.parametrize(("first", "second"), [("modern", "Modern"), ("coco", "сосо"), ("straße", "STRASSE"), ("έ", "Έ"), ("oxo", "οχο")])
def test_two_runs_may_not_look_alike(store: RunStore, first: str, second: str) -> None:
    run, other = store.create(first), store.create("other")
    with pytest.raises(UsageError, match="looks like"):
        store.create(second)
    with pytest.raises(UsageError, match="looks like"):
        store.rename(other, second)
    assert store.rename(run, second).name == second  # of the run itself another writing is free


@pytest.mark.parametrize("name", ["модель", "μ-2", "日本語-bpe", "ملف", "été.v2", "안녕", "ⲁ-1"])
def test_names_of_one_alphabet_are_accepted(store: RunStore, name: str) -> None:
    assert store.create(name).dir.is_dir()


def test_a_name_that_exists_is_refused_and_automatic_names_count_on(store: RunStore) -> None:
    store.create("modern-7")
    assert store.create(None, "modern").name == "modern-8"
    with pytest.raises(UsageError, match="exists already"):
        store.create("modern-7")


def test_two_processes_cannot_get_the_same_automatic_name(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("modern-1")
    monkeypatch.setattr(RunStore, "names", lambda self: [])  # what a racing process saw before the other's mkdir
    assert store.create(None, "modern").name == "modern-2"


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniGPTError, match="cannot create"):
        RunStore(tmp_path / "file" / "runs").create("a")


def test_where_runs_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIGPT_RUNS_DIR", raising=False)
    assert resolve_runs_dir() == Path("runs")
    monkeypatch.setenv("MINIGPT_RUNS_DIR", "elsewhere")
    assert resolve_runs_dir() == Path("elsewhere")
    assert resolve_runs_dir("here") == Path("here")


# ---- finding


def test_runs_are_found_by_name_prefix_latest_and_top(store: RunStore) -> None:
    make(store, "alpha", 2.0, at="2026-01-03T00:00:00Z")
    make(store, "beta", 1.0, at="2026-01-01T00:00:00Z")
    make(store, "beta-2", 3.0, at="2026-01-02T00:00:00Z")
    assert [store.find(w).name for w in ("alpha", "al", "latest", "top", "beta")] == ["alpha", "alpha", "alpha", "beta", "beta"]
    assert [r.name for r in store.runs()] == ["beta", "beta-2", "alpha"]
    with pytest.raises(RunNotFound, match="begins the names of 2 runs"):
        store.find("bet")
    with pytest.raises(RunNotFound, match="did you mean 'alpha'"):
        store.find("alhpa")


@pytest.mark.parametrize("wanted", ["latest", "top", "x", ""])
def test_an_empty_store_says_how_to_start(store: RunStore, wanted: str) -> None:
    with pytest.raises(RunNotFound, match="minigpt train"):
        store.find(wanted)
    assert list(store.list()) == []


def test_the_empty_name_is_no_prefix(store: RunStore) -> None:
    make(store, "alpha")
    with pytest.raises(RunNotFound):
        store.find("")


def test_damaged_and_foreign_folders_are_listed_as_such_and_break_nothing(store: RunStore, tmp_path: Path) -> None:
    make(store, "good", 1.0)
    (store.dir / "empty").mkdir()
    (store.dir / "foreign").mkdir()
    (store.dir / "foreign" / "run.json").write_text("[1, 2]")
    (store.dir / "link").symlink_to(tmp_path)
    (store.dir / "linked-record").mkdir()
    (store.dir / "linked-record" / "run.json").symlink_to(store.dir / "good" / "run.json")
    (store.dir / "unreadable").mkdir()
    (store.dir / "unreadable" / "run.json").mkdir()
    os.mkfifo(store.dir / "foreign" / "pipe")
    (store.dir / "fifo").mkdir()
    os.mkfifo(store.dir / "fifo" / "run.json")
    (store.dir / ".hidden").mkdir()
    (store.dir / "README.md").write_text("")
    damaged = {run.name: run.reason for run in store.list() if isinstance(run, DamagedRun)}
    assert set(damaged) == {"empty", "foreign", "link", "linked-record", "unreadable", "fifo"}
    assert "symbolic link" in damaged["link"]
    assert "symbolic link" in damaged["linked-record"]
    assert [run.name for run in store.runs()] == ["good"]
    assert [row.run for row in rank(store.runs())] == ["good"]
    for name in damaged:
        with pytest.raises(RunDamaged):
            store.find(name)


def test_the_runs_directory_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniGPTError, match="cannot read the runs directory"):
        RunStore(tmp_path / "file").list()


# ---- records


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


# ---- metrics and annotations


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


# ---- locks


def test_two_writers_cannot_share_a_run(store: RunStore) -> None:
    run = make(store, "a")
    with store.lock(run):
        assert run.is_live()
        for action in (lambda: store.lock(run).__enter__(), lambda: store.remove(run), lambda: store.rename(run, "b")):
            with pytest.raises(RunLocked, match="another process"):
                action()
    assert not run.is_live()
    assert store.rename(run, "b").record.name == "b"


TAGGER = """
import sys
from minigpt_cli.runstore.records import Annotations
from minigpt_cli.runstore.store import RunStore
run = RunStore(sys.argv[1]).find("a")
for number in range(25):
    run.annotate(lambda before: Annotations(tags=[*before.tags, f"{sys.argv[2]}-{number}"], note=before.note))
"""


def test_no_tag_is_lost_when_several_processes_tag_a_run_that_is_being_trained(store: RunStore) -> None:
    run = make(store, "a", status="running")
    with store.lock(run):
        taggers = [subprocess.Popen([sys.executable, "-c", TAGGER, str(store.dir), str(i)]) for i in range(4)]
        assert [tagger.wait(60) for tagger in taggers] == [0] * 4
    assert sorted(run.annotations.tags) == sorted(f"{i}-{number}" for i in range(4) for number in range(25))
    assert not list(run.dir.glob(".*.tmp"))


def test_a_change_of_tags_that_cannot_be_kept_leaves_them_as_they_were(store: RunStore) -> None:
    run = make(store, "a")
    run.annotate(lambda _: Annotations(tags=["good"]))
    with pytest.raises(UsageError, match="tags"):
        run.annotate(lambda before: Annotations(tags=[*before.tags, "x" * 61]))
    assert run.annotations.tags == ["good"]


def test_whoever_waited_for_a_run_that_was_renamed_meanwhile_does_not_write_to_its_successor(store: RunStore) -> None:
    run = make(store, "a")
    waited = threading.Event()

    def rename_and_replace(before: Annotations) -> Annotations:
        run.dir.rename(store.dir / "b")
        make(store, "a")
        waited.set()
        return before

    failures: list[BaseException] = []

    def tag() -> None:
        try:
            Run(run.dir).annotate(lambda before: Annotations(tags=[*before.tags, "late"]))
        except MiniGPTError as error:
            failures.append(error)

    with run.annotating():
        tagger = threading.Thread(target=tag)
        tagger.start()
        rename_and_replace(Annotations())
    tagger.join()
    assert waited.is_set()
    assert not failures
    assert store.find("a").annotations.tags == ["late"]  # of the run that has the name now, with its own lock
    assert store.find("b").annotations.tags == []


def test_a_record_is_changed_only_by_whoever_holds_the_lock(store: RunStore) -> None:
    run = make(store, "a")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(store.dir)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunLocked):
            run.write_record(run.record)
        holder.kill()
    with store.lock(run):
        assert run.write_record(run.record).status == "finished"


def test_a_run_is_never_renamed_onto_one_that_is_just_being_made(store: RunStore) -> None:
    run = make(store, "a")
    store.create("b")  # an empty folder, which os.rename alone would replace
    with pytest.raises(UsageError, match="exists already"):
        store.rename(run, "b")
    assert store.find("a").record.status == "finished"


# ---- a clock that is set back


def test_latest_is_the_run_saved_last_though_the_clock_was_set_back(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ["2026-05-01T12:00:00.000000Z"]
    monkeypatch.setattr(directory, "now", lambda: clock[0])

    def saved(name: str) -> None:
        run = store.create(name)
        run.write_record(RunRecord(name=name, created_at=clock[0]))

    make(store, "old", at="2026-05-01T11:59:59Z")  # by a minigpt that knew of the clock alone
    saved("noon")
    clock[0] = "2026-05-01T11:00:00.000000Z"  # set back by an hour
    saved("set-back")
    assert store.find("latest").name == "set-back"
    assert store.find("latest").record.updated_at == clock[0]  # times stay what the clock said
    saved("third")
    assert store.find("latest").name == "third"
    assert [run.name for run in store.list()] == ["old", "noon", "set-back", "third"]
    noon = store.find("noon")
    noon.write_record(noon.record.model_copy(update={"placed_at": ""}))  # as `train --resume` begins
    assert store.find("latest").name == "noon"
    clock[0] = "2026-05-01T12:30:00.000000Z"
    third = store.find("third")
    third.write_record(third.record)
    assert store.find("latest").name == "third"


# ---- processes that die


HOLDER = """
import sys, time
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
store = RunStore(sys.argv[1])
with store.lock(Run(store.dir / "a")):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_kernel_frees_the_lock_of_a_killed_process_and_the_run_shows_as_crashed(store: RunStore) -> None:
    run = make(store, "a", status="running")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(store.dir)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert run.status == "running"
        with pytest.raises(RunLocked):
            store.remove(run)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert run.status == "crashed"
    with store.lock(run):
        assert run.status == "running"


def test_a_reader_does_not_keep_a_writer_from_its_lock(store: RunStore) -> None:
    run = make(store, "a", status="running")
    done = threading.Event()

    def probe() -> None:
        while not done.is_set():
            run.is_live()

    reader = threading.Thread(target=probe)
    reader.start()
    try:
        for _ in range(50):
            with store.lock(run):
                pass
    finally:
        done.set()
        reader.join()


def test_a_lock_that_is_a_link_or_a_pipe_is_refused(store: RunStore, tmp_path: Path) -> None:
    run = make(store, "a", status="running")
    (tmp_path / "victim").write_text("precious")
    run.file(".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(RunDamaged, match="symbolic link"), store.lock(run):
        pass
    assert (tmp_path / "victim").read_text() == "precious"
    assert run.status == "crashed"


def test_without_locks_the_record_says_whether_a_run_is_live(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(store, "a", status="running")
    run.file(".lock").touch()

    def refuse(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert run.status == "running"


def test_the_leavings_of_a_killed_writer_are_swept_by_the_next(store: RunStore) -> None:
    run = make(store, "a")
    (run.dir / "previous").mkdir()
    for folder in (run.dir, run.dir / "previous"):
        (folder / ".last.safetensors.1234abcd.tmp").write_text("half")
    with store.lock(run):
        pass
    assert not list(run.dir.rglob("*.tmp"))


def test_a_new_run_that_fails_before_its_record_leaves_nothing(store: RunStore) -> None:

    def fail_after(write: Callable[[Run], object]) -> None:
        with store.new_run("a") as run:
            write(run)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after(lambda run: run.write_config(RunConfig()))
    assert store.names() == []
    with pytest.raises(ZeroDivisionError):
        fail_after(lambda run: run.write_record(RunRecord(name="a")))
    assert store.names() == ["a"]


# ---- renaming and removing


def test_renaming_and_removing(store: RunStore, tmp_path: Path) -> None:
    run, other = make(store, "a"), make(store, "b")
    with pytest.raises(UsageError, match="exists already"):
        store.rename(run, "b")
    with pytest.raises(UsageError):
        store.rename(run, "../b")
    store.remove(other)
    assert store.names() == ["a"]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("")
    (store.dir / "link").symlink_to(tmp_path / "outside")
    link = next(r for r in store.list() if isinstance(r, DamagedRun))
    with pytest.raises(RunDamaged, match="symbolic link"):
        store.remove(link)
    assert (tmp_path / "outside" / "precious").exists()
    (store.dir / "damaged").mkdir()
    store.remove(next(r for r in store.list() if r.name == "damaged"))
    assert store.names() == ["a", "link"]


@pytest.mark.parametrize(("place", "name"), [(RunStore, "names"), (atomic_io, "is_inside_real_folder")])
def test_a_run_that_is_renamed_while_it_is_looked_for_is_not_called_damaged(
    place: object, name: str, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "a"), make(store, "b")
    real = getattr(place, name)

    def renamed_in_between(where: object) -> object:
        found = real(where)
        if (store.dir / "a").exists():
            os.rename(store.dir / "a", store.dir / "c")
        return found

    monkeypatch.setattr(place, name, renamed_in_between)
    assert [entry.name for entry in store.list() if isinstance(entry, DamagedRun)] == []
    os.rename(store.dir / "c", store.dir / "a")
    with pytest.raises(RunNotFound, match="unknown run 'a'"):
        store.find("a")


def test_a_run_that_cannot_be_deleted_stays_in_sight(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(store, "a")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(MiniGPTError, match="cannot remove"):
            store.remove(run)
    assert store.names() == ["a"]
    store.remove(run)
    assert list(store.dir.iterdir()) == []


def test_removing_never_follows_a_link_inside_a_run(store: RunStore, tmp_path: Path) -> None:
    run = make(store, "a")
    (tmp_path / "precious").write_text("")
    (run.dir / "inside").symlink_to(tmp_path)
    store.remove(run)
    assert (tmp_path / "precious").exists()


# ---- leaderboard


def test_runs_on_other_texts_are_ranked_apart(store: RunStore) -> None:
    make(store, "old-best", 0.5, text="b" * 64, at="2026-01-01T00:00:00Z")
    make(store, "second", 1.05, at="2026-01-02T00:00:00Z")
    make(store, "first", 1.0, at="2026-01-02T00:00:00Z")
    make(store, "third", 1.5, at="2026-01-03T00:00:00Z")
    make(store, "unscored")
    rows = rank(store.runs())
    assert [(row.rank, row.run, row.tied_with_best) for row in rows] == [
        (1, "first", True), (2, "second", True), (3, "third", False), (1, "old-best", True),
    ]  # fmt: skip
    assert store.find("top").name == "first"
    assert [row.tied_with_best for row in rank(store.runs(), with_ties=False)] == [True, False, False, True]


def test_a_run_without_a_corpus_is_a_text_of_its_own(store: RunStore) -> None:
    assert make(store, "a", 1.0, corpus=None).record.text_sha256 == ""


def test_a_thousand_runs_are_listed_in_under_a_second(store: RunStore) -> None:
    template = make(store, "seed", 1.0).file("run.json").read_bytes()
    for i in range(999):
        run = store.dir / f"run-{i}"
        run.mkdir()
        (run / "run.json").write_bytes(template)
    begin = time.process_time()
    assert len(store.runs()) == 1000
    assert len(rank(store.runs())) == 1000
    assert time.process_time() - begin < 1.0  # of this process: neighbours do not count


def test_listing_needs_no_torch(store: RunStore) -> None:
    make(store, "a", 1.0)
    script = (
        f"import sys; from minigpt_cli.runstore.store import RunStore; from minigpt_cli.evaluation.leaderboard import rank; "
        f"rank(RunStore({str(store.dir)!r}).runs()); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


# ---- readers beside a writer


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


# ---- the file layer


def test_write_atomic_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    atomic_io.write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()


def test_write_atomic_into_nowhere_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MiniGPTError, match="cannot write"):
        atomic_io.write_atomic(tmp_path / "no" / "file", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MiniGPTError):
        atomic_io.write_atomic(tmp_path / "folder", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_grows_beyond_its_limit_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    monkeypatch.setattr(os, "read", lambda fd, n: b"x" * n)
    with pytest.raises(RunDamaged, match="grew"):
        atomic_io.read_bounded(tmp_path / "file", 20)


def test_missing_and_unreadable_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunDamaged, match="missing"):
        atomic_io.read_json(tmp_path / "no.json")
    with pytest.raises(RunDamaged, match="missing"):
        directory.read_record(tmp_path / "no.json")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    for read in (atomic_io.read_json, directory.read_record):
        with pytest.raises(RunDamaged, match="Permission denied"):
            read(tmp_path / "no.json")


def test_room_on_the_disk_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_io.check_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(MiniGPTError, match=r"free and .* are needed"):
        atomic_io.check_space(tmp_path, 1 << 60)

    def refuse(_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "statvfs", refuse)
    atomic_io.check_space(tmp_path, 1 << 60)


@pytest.mark.parametrize(
    ("n", "shown"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (1 << 40, "1024.0 GiB")]
)
def test_sizes_have_readable_units(n: int, shown: str) -> None:
    assert atomic_io.size(n) == shown


def test_an_unknown_system_error_keeps_its_own_words() -> None:
    assert str(atomic_io.explain(OSError(9999, "strange"), "save")) == "cannot save: strange"
    assert str(atomic_io.explain(OSError("no number"), "save")) == "cannot save: no number"


def test_one_line_cuts_and_cleans() -> None:
    assert atomic_io.one_line("a\n\x1b[31mb\tc") == "a [31mb c"
    assert atomic_io.one_line("x" * 10, 5) == "xxxx…"
    assert atomic_io.first_line_of([]) == "not valid"
    assert now().endswith("Z")


def test_what_is_no_file_is_not_written_to(store: RunStore) -> None:
    run = make(store, "a")
    assert repr(run).startswith("Run(")
    for create in (os.mkfifo, os.mkdir):
        create(run.file("metrics.jsonl"))
        with pytest.raises(RunDamaged, match="not a regular file"):
            run.append(evaluated(1))
        run.file("metrics.jsonl").unlink() if create is os.mkfifo else run.file("metrics.jsonl").rmdir()


def test_a_kill_in_the_middle_of_a_rename_leaves_the_run_under_one_name_and_nothing_under_the_other(store: RunStore) -> None:
    make(store, "a")
    for nth in range(1, 20):
        saboteur = Saboteur()
        try:
            with saboteur.strikes(nth, "kill"):
                store.rename(store.find_name(store.names()[0]), f"b{nth}")
        except Killed:
            pass
        [entry] = store.list()
        assert isinstance(entry, Run)
        assert entry.record.status == "finished"
        if saboteur.count < nth:
            return
    pytest.fail("the rename never finished")


@pytest.mark.parametrize("change", [lambda _: Annotations(tags=["x" * 61]), lambda _: Annotations(note="x" * (1 << 20))])
def test_a_refused_mark_leaves_no_file(change: Callable[[Annotations], Annotations], store: RunStore) -> None:
    run = make(store, "a")
    before = sorted(run.dir.iterdir())
    with pytest.raises(UsageError):
        run.annotate(change)
    assert sorted(run.dir.iterdir()) == before
