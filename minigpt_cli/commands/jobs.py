"""minigpt train --jobs N: the runs of a group side by side, in N processes that each take the next run that nobody trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from minigpt_cli.display import console
from minigpt_cli.errors import Interrupted, RunDamaged
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.threads import cores

_POLL_S = 1.0
_ONE_OF_JOBS = "MINIGPT_ONE_OF_JOBS"  # set in the processes that --jobs starts


def side_by_side(n: int, store: RunStore, group: str, total: int, *, threads: int, json: bool) -> None:
    """Run this command in `n` processes until each has nothing left to take; `threads`: of each, 0 for a fair share of the cores.

    A signal is passed on, so that every process saves. Raises Interrupted then.
    """
    share = threads or max(1, cores() // n)
    environment = {**os.environ, "OMP_NUM_THREADS": str(share), _ONE_OF_JOBS: "1"}
    console.notice(f"{n} processes of {share} thread{'s' * (share > 1)} train the group {group}")
    command = [sys.executable, "-m", "minigpt_cli", *_of_one_process(sys.argv[1:])]
    out = None if json else subprocess.DEVNULL
    children = [subprocess.Popen(command, env=environment, stdout=out, stdin=subprocess.DEVNULL, start_new_session=True) for _ in range(n)]
    with _passed_on(children) as received, console.progress(quiet=json) as advance:
        for child in children:
            while _waits(child):
                advance(f"training {group}", _finished(store, group), total)
    if received:
        raise Interrupted(f"group {group} is saved: the same command goes on", received[0])


def is_one_of_jobs() -> bool:
    """Whether this process only trains for another, which shows the result."""
    return _ONE_OF_JOBS in os.environ


def _of_one_process(arguments: Sequence[str]) -> list[str]:
    """The command without --jobs, printing events."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--jobs="):
            skip = False
        elif argument == "--jobs":
            skip = True
        else:
            kept.append(argument)
    return [*kept, *(() if "--json" in kept else ("--json",))]


def _waits(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _finished(store: RunStore, group: str) -> int:
    """How many runs of the group are finished."""
    return sum(_status(Run(store.dir / name)) == "finished" for name in store.of_group(group))


def _status(run: Run) -> str:
    try:
        return run.record.status
    except RunDamaged:  # it is being created
        return ""


@contextmanager
def _passed_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """The signals that arrive during the block; each is sent to every child, which has no terminal of its own."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children:
            if child.poll() is None and os.name == "posix":  # on Windows it shares the terminal, and hears Ctrl-C itself
                child.send_signal(number)
        if len(received) == 1:
            console.write_now("Finishing the steps and saving; press again to stop at once.")

    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
        number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
