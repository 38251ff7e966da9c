"""Fixtures that every room shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Tests run on all cores, a process each: more threads in each would only wait for one another. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Settings of whoever runs the tests would change what is tested, and their runs would become those of the tests.
for _setting in [name for name in os.environ if name.startswith("MINIGPT_") and name not in ("MINIGPT_SHARED", "MINIGPT_NEED_BROWSER")]:
    del os.environ[_setting]

# A shell's background job and nohup leave signals ignored, which the tests of signals, and the processes that they start, would inherit.
for _name, _usual in (("SIGINT", signal.default_int_handler), ("SIGTERM", signal.SIG_DFL), ("SIGHUP", signal.SIG_DFL)):
    if (_number := getattr(signal, _name, None)) is not None and signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text and tokenizer files that parity tests read; skips where it is missing."""
    folder = Path(os.environ.get("MINIGPT_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set MINIGPT_SHARED to the folder that holds data/")
    return folder
