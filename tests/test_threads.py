"""A signal that comes while a thread is started ends the work as it would a moment later."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

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
