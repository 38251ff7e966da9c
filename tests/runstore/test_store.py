"""The run store: finding, listing, renaming and removing runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.sabotage import Killed, Saboteur

from minigpt_cli.errors import MiniGPTError, RunDamaged, RunNotFound, UsageError
from minigpt_cli.evaluation.leaderboard import rank
from minigpt_cli.runstore import directory
from minigpt_cli.runstore.directory import DamagedRun, Run
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io

from .runs import make


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


def test_a_thousand_runs_are_listed_in_under_a_second(store: RunStore) -> None:
    template = make(store, "seed", 1.0).file("run.json").read_bytes()
    for i in range(999):
        run = store.dir / f"run-{i}"
        run.mkdir()
        (run / "run.json").write_bytes(template)

    def seconds() -> float:
        begin = time.process_time()
        assert len(store.runs()) == 1000
        assert len(rank(store.runs())) == 1000
        return time.process_time() - begin

    assert any(seconds() < 1.0 for _ in range(3))  # once is enough: other processes share the caches


def test_listing_needs_no_torch(store: RunStore) -> None:
    make(store, "a", 1.0)
    script = (
        f"import sys; from minigpt_cli.runstore.store import RunStore; from minigpt_cli.evaluation.leaderboard import rank; "
        f"rank(RunStore({str(store.dir)!r}).runs()); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


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
