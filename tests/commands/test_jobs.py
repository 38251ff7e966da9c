"""minigpt train --jobs: the runs of a group in several processes are the runs of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.runstore import locks
from minigpt_cli.runstore.store import RunStore

GROUP = ["--sweep", "lr=1e-3,1e-2", "--seeds", "2", "--name", "g"]


@pytest.fixture
def desk(home: Path, text: str) -> Path:
    (home / "text.txt").write_text(text)
    return home


def weights(store: RunStore) -> dict[str, bytes]:
    return {run.name: (run.dir / "best.safetensors").read_bytes() for run in store.runs()}


def test_side_by_side_gives_the_bits_of_one_after_another(cli: Any, tiny: list[str], desk: Path) -> None:
    flags = [*tiny, "--threads", "1"]
    assert cli("train", "text.txt", *GROUP, *flags, "--runs-dir", "one").code == 0
    done = cli("train", "text.txt", *GROUP, *flags, "--runs-dir", "two", "--jobs", "2")
    assert done.code == 0
    assert "2 processes of 1 thread train the group g" in done.err
    assert "4 runs, 0 failed" in done.err
    assert weights(RunStore("two")) == weights(RunStore("one"))
    assert len(weights(RunStore("two"))) == 4
    assert not list(Path("two").glob(".*.claim"))


def test_a_run_that_another_process_trains_is_left_to_it(cli: Any, tiny: list[str], desk: Path) -> None:
    Path("runs").mkdir()
    release = locks.acquire(Path("runs/.g~lr=1e-3,seed=1337.claim"))
    assert release is not None
    assert cli("train", "text.txt", *GROUP, *tiny).code == 0
    assert [run.name for run in RunStore().runs()] == ["g~lr=1e-3,seed=1338", "g~lr=1e-2,seed=1337", "g~lr=1e-2,seed=1338"]
    release()
    assert cli("train", "text.txt", *GROUP, *tiny).code == 0
    assert len(RunStore().runs()) == 4


@pytest.mark.parametrize(("flags", "message"), [([], "add --sweep, --seeds or --search"), (["--resume", "x"], "leave out --jobs")])
def test_jobs_need_a_group(cli: Any, tiny: list[str], desk: Path, flags: list[str], message: str) -> None:
    done = cli("train", *([] if flags else ["text.txt"]), *flags, *tiny, "--jobs", "2")
    assert done.code == 2
    assert message in done.err


def test_a_signal_reaches_every_process_and_everything_is_saved(tiny: list[str], desk: Path) -> None:
    endless = [*tiny, "--max-steps", "10000000", "--eval-every", "50", "--eval-iters", "1", "--threads", "1"]
    command = [sys.executable, "-m", "minigpt_cli", "train", "text.txt", *GROUP, *endless, "--jobs", "2"]
    process = subprocess.Popen(command, cwd=desk, env={**os.environ, "NO_COLOR": "1"}, stderr=subprocess.PIPE, text=True)
    store, until = RunStore(desk / "runs"), time.monotonic() + 60
    while sum(bool(run.record.files) for run in store.runs()) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert [run.status for run in store.runs()] == ["interrupted", "interrupted"]
