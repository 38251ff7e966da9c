"""The cores that this process may use, and how long OpenMP's threads spin before they sleep. No torch."""

from __future__ import annotations

import os

_SPINS = "6000"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores() -> None:
    """Let OpenMP's threads sleep after a fifth of a millisecond of waiting for each other. Call it before torch loads.

    By default libgomp spins for milliseconds, on a core that another process could use. That process' threads then spin too, and two
    trainings at once take ten times as long as one, or longer. 3,000 spins already slow one training down by 7 to 20 %, 6,000 do not, and
    with 10,000 two at once take three times as long as one (tests/benchmarks/side_by_side.py).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
