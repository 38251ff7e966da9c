"""Threads that leave others their turn: how long they wait awake. No torch."""

from __future__ import annotations

import os

_SPINS = "3000"


def share_cores() -> None:
    """Let OpenMP's threads sleep after a tenth of a millisecond of waiting for each other. Call it before torch loads.

    libgomp's own choice is to spin for milliseconds, on a core that another process could use; that process' threads then spin as well, and
    two trainings at once take ten times as long as one and more. Fewer spins cost one alone nothing (tests/benchmarks/side_by_side.py).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
