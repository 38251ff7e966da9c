"""Threads that leave others their turn."""

from __future__ import annotations

import os

import pytest

from minigpt_cli import threads


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
