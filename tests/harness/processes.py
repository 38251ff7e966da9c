"""Command lines as processes that may be killed: forks of this one, which has imported everything, so that a short one takes 50 ms.

A fork is as good as a new process as long as this one has a single thread; that is checked before each.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import mmap
import os
import pkgutil
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

import minigpt_cli
from minigpt_cli.__main__ import main

from .sabotage import Saboteur

_IMPORTED_LATE = ("torch._dynamo", "numpy.ma", "optuna", "rich.live", "rich.table", "gguf", "tokenizers")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Ended(NamedTuple):
    """How a command line ended."""

    arguments: tuple[str, ...]
    code: int  # negative: the number of the signal that killed it
    out: str
    err: str
    calls: int  # that changed files, where they were counted
    elapsed_s: float

    def json(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.out)

    def events(self) -> list[dict[str, Any]]:
        """stdout as `train --json` writes it: an event a line; what a kill cut off is left out."""
        whole, _, _ = self.out.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


class Process:
    """A command line that is running."""

    def __init__(self, pid: int, arguments: Sequence[str], streams: tuple[int, int], calls: mmap.mmap) -> None:
        self.pid, self.arguments, self.started = pid, tuple(arguments), time.monotonic()
        self.pidfd = os.pidfd_open(pid)
        self.sent: list[int] = []
        self._streams, self._calls = streams, calls

    def is_ready(self) -> bool:
        """Whether it has come as far as its first own line: before, Python would answer a signal."""
        return self._calls[8] == 1

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it ended within so many seconds."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(None if seconds is None else max(0.0, seconds * 1e3)))

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, or send it to all the processes that it started too."""
        self.sent.append(number)
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> Ended:
        """SIGKILL for it and all that it started; how it ended (it may have been done before)."""
        self.signal(signal.SIGKILL, group=True)
        return self.ended()

    def ended(self) -> Ended:
        """Wait for the end; what it said. Once only."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        elapsed_s = time.monotonic() - self.started
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # compilers that it left behind
        out, err = (_read_all(fd) for fd in self._streams)
        for fd in (*self._streams, self.pidfd):
            os.close(fd)
        calls = int.from_bytes(self._calls[:8], "little")
        self._calls.close()
        return Ended(self.arguments, code, out, err, calls, elapsed_s)


class Processes:
    """Starts command lines. `environment` is theirs beside this process's, whose MINIGPT_ settings they do not see; `imports` are modules
    that they will want besides."""

    def __init__(self, environment: Mapping[str, str], *imports: str) -> None:
        self.environment = dict(environment)
        torch.set_num_threads(1)
        for module in pkgutil.walk_packages(minigpt_cli.__path__, "minigpt_cli."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        for name in (*_IMPORTED_LATE, *imports):
            with suppress(ImportError):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # pages that no child touches are not copied

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path | None = None,
        count: bool = False,
        die_at_call: int = 0,
        hook: Callable[[], None] | None = None,
        **more: str,
    ) -> Process:
        """Start `minigpt ARGUMENTS`, with more environment; it may count its calls that change files, die in one of them, and first do
        what `hook` does."""
        _check_single_thread()
        streams = (os.memfd_create("out"), os.memfd_create("err"))
        calls = mmap.mmap(-1, 16)
        sys.stdout.flush()
        sys.stderr.flush()

        def prepare() -> None:
            if cwd is not None:
                os.chdir(cwd)
            if count or die_at_call:
                Saboteur(calls).stay(-1 if count else die_at_call)
            if hook is not None:
                hook()
            calls[8] = 1

        if not (pid := os.fork()):
            _run_in_child(arguments, streams, {**self.environment, **more}, prepare)
        with suppress(OSError):
            os.setpgid(pid, pid)
        return Process(pid, arguments, streams, calls)

    def run(self, arguments: Sequence[str], **how: Any) -> Ended:
        """Start, and wait for the end."""
        return self.start(arguments, **how).ended()


def _check_single_thread() -> None:
    """Raise RuntimeError where a fork would not be as good as a new process."""
    with open("/proc/self/status") as status:
        threads = next(int(line.split()[1]) for line in status if line.startswith("Threads:"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads are running: import harness before torch, and compute nothing in this process")


def _run_in_child(
    arguments: Sequence[str], streams: tuple[int, int], environment: Mapping[str, str], prepare: Callable[[], None]
) -> NoReturn:
    """Run the command line in this child, and end as it ends."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for target, fd in enumerate(streams, start=1):
            os.dup2(fd, target)
        sys.stdin, sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, mode, closefd=False)) for fd, mode in enumerate("rww"))
        for name in [name for name in os.environ if name.startswith("MINIGPT_")]:
            del os.environ[name]
        os.environ.update(environment)
        sys.argv = ["minigpt", *arguments]
        prepare()
        main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code & 0xFF)


def _read_all(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")
