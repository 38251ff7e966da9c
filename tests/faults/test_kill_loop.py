"""Real processes, killed at random and resumed, end equal to the uninterrupted run to the bit; many at once break nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are forked, and waited for as Linux does it")


def result(script: str, *options: str) -> dict[str, Any]:
    """What the longer script prints, run for a moment."""
    done = subprocess.run([sys.executable, str(SCRIPTS / script), *options], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_thirty_kills_change_nothing() -> None:
    found = result("kill_loop.py", "--rounds", "30", "--kind", "train", "sweep", "command")
    assert found["rounds"] == 30
    assert found["findings"] == []


def test_twenty_interrupts_end_without_a_traceback() -> None:
    found = result(
        "interrupts.py", "--moments", "20", "--only", "tokenize", "generate", "runs plot modern --html", "train --help", "runs list"
    )
    assert found["findings"] == {}
    assert sum(n for name, n in found["outcomes"].items() if name.endswith(" 130")) >= 3


def test_random_commands_of_many_processes_break_nothing() -> None:
    found = result("random_commands.py", "--minutes", "0.1", "--processes", "4")
    assert found["commands"] > 5
    assert found["findings"] == {}
