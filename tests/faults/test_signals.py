"""After the first signal training finishes the step and saves; after the second it stops at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from harness import tiny

from minigpt_cli import checkpoints
from minigpt_cli.commands.signals import StopSignals
from minigpt_cli.errors import Interrupted
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.store import RunStore

FOREVER = [*tiny.training(1_000_000, 200), "--eval-iters", "1", "--json", "--name", "run"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_work_at_once(number: int, code: int) -> None:
    reason = StopReason.INTERRUPTED_KEYBOARD if number == signal.SIGINT else StopReason.TERMINATED
    before, announced = signal.getsignal(number), list[str]()
    with StopSignals() as signals:
        signals.wait_for_save(announced.append)
        os.kill(os.getpid(), number)
        assert signals.poll() == reason
        with pytest.raises(Interrupted, match="the last save is intact") as caught:
            os.kill(os.getpid(), number)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert len(announced) == 1
    assert "press again to stop at once" in announced[0]


def test_a_signal_before_training_ends_the_work() -> None:
    with StopSignals(), pytest.raises(Interrupted, match="before training started"):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A real process that trains until it is told to stop."""
    (tmp_path / "text.txt").write_text(tiny.text())
    command = [sys.executable, "-m", "minigpt_cli", "train", "text.txt", *FOREVER]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.kill()


def events_until(stream: IO[str] | None, wanted: str) -> list[dict[str, object]]:
    assert stream is not None
    seen = []
    for line in stream:
        seen.append(json.loads(line))
        if seen[-1]["event"] == wanted:
            break
    return seen


def test_many_signals_leave_the_last_save_complete(training: subprocess.Popen[str], tmp_path: Path) -> None:
    events_until(training.stdout, "saved")
    for _ in range(20):
        training.send_signal(signal.SIGINT)
    out, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert "Traceback" not in err
    run = RunStore(tmp_path / "runs").find("run")
    assert checkpoints.load_resume(run).resume_state["step"] >= 200
    assert run.status == "interrupted"
    assert not list(run.dir.rglob("*.tmp"))
    assert all(json.loads(line) for line in out.splitlines())
