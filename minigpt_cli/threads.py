"""How long OpenMP's threads spin before they sleep. No torch."""

from __future__ import annotations

import os

_SPINS = "3000"


def share_cores() -> None:
    """Let OpenMP's threads sleep after a tenth of a millisecond of waiting for each other. Call it before torch loads.

    By default libgomp spins for milliseconds, on a core that another process could use. That process' threads then spin too, and two
    trainings at once take ten times as long as one, or longer. Fewer spins do not slow one training (tests/benchmarks/side_by_side.py).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
