"""Files that a killed process left are removed by a later process, when no process can be using them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minigpt_cli.data.atomic_folder import UNFINISHED, atomic_folder
from minigpt_cli.evaluation import cache
from minigpt_cli.evaluation.scores import make_score
from minigpt_cli.interchange.folders import new_folder
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io

NAME = f".thing.0123abcd{atomic_io.TEMPORARY}"


def remove_a_run(folder: Path) -> None:
    store = RunStore(folder)
    store.remove(store.create("doomed"))


def keep_a_score(folder: Path) -> None:
    score = make_score(np.ones(200), np.ones(200), np.arange(200), b"a" * 200)
    cache.keep(folder.parent, cache.ScoreKey("0" * 64, score.text_sha256), score)


def write_a_folder(folder: Path) -> None:
    with new_folder(folder / "thing") as made:
        (made / "file").write_text("")
    shutil.rmtree(folder / "thing")


def prepare_data(folder: Path) -> None:
    with atomic_folder(folder):
        pass


@pytest.mark.parametrize(
    ("work", "place", "left"),
    [
        (remove_a_run, "runs", f"{NAME}/part/of/a/run"),
        (keep_a_score, cache.FOLDER, NAME),
        (write_a_folder, "exports", f"{UNFINISHED}xyz/model.safetensors"),
        (prepare_data, "data", f"{UNFINISHED}xyz/train.bin"),
    ],
)
def test_files_that_a_kill_left_are_removed_after_a_day_and_not_before(
    work: Callable[[Path], None], place: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / place
    for name in (left, "mine/kept", f".other{atomic_io.TEMPORARY}.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    first = folder / Path(left).parts[0]
    work(folder)
    assert first.exists()
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    work(folder)
    assert not first.exists()
    assert (folder / "mine" / "kept").exists()
    assert (folder / f".other{atomic_io.TEMPORARY}.txt").exists()
