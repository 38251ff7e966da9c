"""One writer a run: locks, and processes that die."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError, RunDamaged, RunLocked, UsageError
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.locks import hold_folder
from minigpt_cli.runstore.records import Annotations, RunRecord
from minigpt_cli.runstore.store import RunStore

from .runs import make


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


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked")
def test_a_folder_that_another_process_renames_meanwhile_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)  # it was there, and is renamed before it is opened
    assert hold_folder(tmp_path / "building") is None
