"""Real processes, SIGKILL at random moments, resumed to the end: bit for bit the run that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOP = Path(__file__).parents[1] / "benchmarks" / "kill_loop.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize(("arch", "rounds"), [("modern", 14), ("classic", 6)])
def test_twenty_kills_change_nothing(arch: str, rounds: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(LOOP), "--rounds", str(rounds), "--arch", arch]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rounds"] == rounds
    assert result["differences"] == []
