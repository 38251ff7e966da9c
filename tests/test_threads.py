"""A signal that comes while a thread is started ends the work as it would a moment later."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from minigpt_cli import threads
from minigpt_cli.data.atomic_folder import watched
from minigpt_cli.errors import Interrupted
from minigpt_cli.storage.memory import check_threads


@pytest.mark.parametrize("work", [lambda: list(watched(lambda report: None, "reading")), lambda: check_threads(2)])
def test_a_signal_while_a_thread_is_started_ends_the_work(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading._start_new_thread  # type: ignore[attr-defined]

    def interrupted(*arguments: Any, **how: Any) -> Any:
        number = real(*arguments, **how)
        time.sleep(0.02)  # the thread runs
        os.kill(os.getpid(), signal.SIGTERM)
        return number

    def stop(*_: Any) -> None:
        raise Interrupted("stopped", signal.SIGTERM)

    monkeypatch.setattr(threading, "_start_new_thread", interrupted)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Interrupted):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_threads_that_wait_for_each_other_soon_sleep_unless_a_person_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    threads.share_cores()
    assert int(os.environ["GOMP_SPINCOUNT"]) <= 10_000  # libgomp's own: 300,000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    threads.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ
