"""Fixtures that every room shares."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest

hypothesis.settings.register_profile("shared machine", deadline=None)  # where any example may have to wait
hypothesis.settings.load_profile("shared machine")

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


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """torch.compile without its C++ compiler, which takes a minute: "eager" runs graphs as they are, "aot_eager" derives gradients too."""
    import torch

    real = torch.compile
    chosen = ["eager"]
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=chosen[0], **options))
    logging.disable(logging.INFO)  # thousands of lines, which pytest would keep
    torch.compiler.reset()
    yield lambda backend: chosen.__setitem__(0, backend)
    torch.compiler.reset()
    logging.disable(logging.NOTSET)


class Ended(NamedTuple):
    """How a process ended; `code` is None where it had to be killed."""

    code: int | None
    out: str
    err: str


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[..., list[Ended]]]:
    """Run one command line in so many processes that train together; how each of them ended. Hooks: see harness/peers.py."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("processes are forked, and waited for as Linux does it")
    command, folder = [sys.executable, "-m", "harness.peers"], Path(__file__).parent
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(
            folder: Path, args: list[str], size: int = 1, hook: str = "", values: tuple[str, ...] = (), limit_s: float = 60
        ) -> list[Ended]:
            order = {"folder": str(folder), "args": args, "size": size, "hook": hook, "values": values, "limit_s": limit_s}
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            return [Ended(**ended) for ended in json.loads(server.stdout.readline())]

        yield run
        server.stdin.close()
