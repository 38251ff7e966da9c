"""A signal that comes where its error would be lost ends the work a moment later."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli import interrupts
from minigpt_cli.commands.signals import StopSignals
from minigpt_cli.data.atomic_folder import watched
from minigpt_cli.errors import Interrupted, MiniGPTError
from minigpt_cli.storage.memory import check_threads


def and_on(work: Callable[[], object]) -> None:
    """Do the work, and something that takes longer than a signal is postponed."""
    work()
    time.sleep(1.0)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals as in a process of minigpt."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    interrupts.listen()
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("work", [lambda: list(watched(lambda report: None, "reading")), lambda: check_threads(2)])
def test_a_signal_while_a_thread_is_started_ends_the_work(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading._start_new_thread  # type: ignore[attr-defined]

    def interrupted(*arguments: Any, **how: Any) -> Any:
        number = real(*arguments, **how)
        time.sleep(0.02)  # the thread runs
        os.kill(os.getpid(), signal.SIGTERM)
        return number

    monkeypatch.setattr(threading, "_start_new_thread", interrupted)
    with StopSignals(), pytest.raises(Interrupted) as caught:
        and_on(work)
    assert caught.value.exit_code == 143


@pytest.mark.parametrize("swallowing", ["try:\n    {}\nexcept BaseException:\n    raise ImportError('no such library')", "{}"])
@pytest.mark.usefixtures("listening")
def test_a_signal_in_the_middle_of_an_import_ends_the_work_after_it(
    swallowing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_library.py").write_text(swallowing.format("import os; os.kill(os.getpid(), 2); x = 1") + "\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        and_on(lambda: importlib.import_module("a_library"))
    assert sys.modules.pop("a_library").whole


@pytest.mark.usefixtures("listening")
def test_a_signal_in_a_finalizer_ends_the_work_after_it(capfd: pytest.CaptureFixture[str]) -> None:
    class Library:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        and_on(Library)
    assert capfd.readouterr().err == ""


def test_code_that_goes_on_after_any_exception_does_not_go_on_after_a_signal() -> None:
    assert not issubclass(Interrupted, Exception | MiniGPTError)
