"""Folders that appear complete or not at all, and watched work."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.data import atomic_folder as module
from minigpt_cli.data.atomic_folder import UNFINISHED, Preparing, atomic_folder, put_in_place, watched
from minigpt_cli.errors import MiniGPTError


def test_what_is_not_put_in_place_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "a" / "b") as folder:
        (folder / "no" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_folder_takes_its_name_and_the_parents_stay(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
        put_in_place(folder, tmp_path / "a" / "b" / "done", lambda there: False)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["done"]
    assert (tmp_path / "a" / "b" / "done" / "file").read_text() == "x"
    assert (tmp_path / "a" / "b" / "done").stat().st_mode & 0o777 == 0o777 & ~module._umask()


@pytest.mark.parametrize(("good", "kept"), [(True, "old"), (False, "new")])
def test_what_is_good_stays_and_what_is_not_is_replaced(good: bool, kept: str, tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "file").write_text("old")
    with atomic_folder(tmp_path) as folder:
        (folder / "file").write_text("new")
        (folder / ".file.0a1b2c.tmp").write_text("what a killed process was writing")
        put_in_place(folder, tmp_path / "done", lambda there: good)
    assert (tmp_path / "done" / "file").read_text() == kept
    assert os.listdir(tmp_path) == ["done"]
    assert os.listdir(tmp_path / "done") == ["file"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MiniGPTError, match="cannot make the folder"), atomic_folder(tmp_path / "file" / "inside"):
        pytest.fail("made a folder inside a file")


def test_what_killed_processes_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    for name, age in (("old", 2 * 86_400), ("new", 60)):
        folder = tmp_path / f"{UNFINISHED}{name}"
        folder.mkdir()
        (folder / "train.bin").write_text("x")
        os.utime(folder, (time.time() - age,) * 2)
    with atomic_folder(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [f"{UNFINISHED}new"]


def test_work_reports_while_it_goes_on_and_returns_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.001)

    def work(report: Any) -> str:
        for done in range(5):
            report(done, 5)
            time.sleep(0.01)
        return "result"

    seen = []

    def follow() -> Any:
        result = yield from watched(work, "working")
        assert result == "result"
        seen.append(Preparing(9, 9, "done"))

    seen += list(follow())
    *steps, last = seen[1:] + seen[:1]
    assert last == Preparing(9, 9, "done")
    assert steps == sorted(steps, key=lambda step: step.done_bytes)
    assert steps[-1] == Preparing(4, 5, "working")


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_the_error_of_the_work_is_raised(error: BaseException) -> None:
    def work(report: Any) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        list(watched(work, "working"))
    assert caught.value is error
