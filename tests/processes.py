"""Command lines in processes of their own, alone or several that train together, quickly: torch is imported once, then forked.

Started by the fixture `processes`. Reads a JSON line for each round of processes, answers with one. `HOOKS` spoil a process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp  # imported before the fork, as is all else that every process would import for itself
import torch.nn.parallel

from minigpt_cli import checkpoints, cli
from minigpt_cli.commands import train
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.training import evaluator, memory, planner, precision, sweeps, trainer


def unequal(rank: int, path: str) -> None:
    """A machine of another kind: a clock of its own speed, other threads, memory, arithmetic, losses and settings. What it came to goes
    to `path`."""
    real_clock, real_measure, real_finish = time.perf_counter, evaluator.Measuring.__call__, trainer._Trainer._finish

    def measure(self: evaluator.Measuring) -> evaluator.Measured:
        found = real_measure(self)
        worse = 1.0 + rank * self._state.world.rank * next(count)  # for the others every evaluation is worse than the one before
        return found._replace(val_loss=(found.val_loss or 0.0) * worse)

    def finish(self: trainer._Trainer, reason: Any) -> Iterator[Any]:
        weights = torch.cat([p.detach().flatten() for p in self.state.model.parameters()])
        facts = {"config": self.config.model_dump(mode="json"), "steps": self.meter.steps, "reason": reason, "run": self.run.name}
        Path(path).write_text(json.dumps({**facts, "progress": self.judge.counters.state(), "weights": weights.double().tolist()}))
        yield from real_finish(self, reason)

    count = iter(range(1, 1_000_000))
    time.perf_counter = lambda: real_clock() * (1 + 3 * rank)
    precision.bf16_speedup = lambda device_type: 9.0 - 8.5 * rank
    memory.available = lambda device: int(memory._WORKSPACE / memory._SAFE_SHARE) + (1 << 19 if rank else 2 << 30)
    torch.get_num_threads = lambda: 1 + rank
    evaluator.Measuring.__call__ = measure
    trainer._Trainer._finish = finish
    if rank:
        os.environ["MINIGPT_LR"], os.environ["MINIGPT_TIME_LIMIT"] = "0.5", "0.01s"


def elsewhere(rank: int, path: str) -> None:
    """A machine that does not share the folder."""
    if rank:
        os.chdir(path)


def dies_at_step(rank: int, step: str) -> None:
    """The last process is killed in the middle of training."""
    real = trainer._Trainer._evaluation_due

    def due(self: trainer._Trainer) -> bool:
        if rank and self.meter.steps == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self)

    trainer._Trainer._evaluation_due = due


def terminated_at_step(rank: int, step: str) -> None:
    """The last process gets a SIGTERM in the middle of training."""
    real = trainer._Trainer._agreed_reason

    def agreed(self: trainer._Trainer, *args: Any) -> Any:
        if rank and self.meter.steps == int(step):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    trainer._Trainer._agreed_reason = agreed


def killed(rank: int, moment: str) -> None:
    """The process is killed at a moment of a search."""

    def instead(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def after(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            real(*args, **kwargs)
            return instead()

        return call

    def half_a_line(self: Any, logs: list[dict[str, Any]]) -> None:
        with open(self._file_path, "ab") as file:
            file.write(json.dumps(logs[0]).encode()[:-5])
        instead()

    if moment == "asked":
        sweeps.Study._draw = instead
    elif moment == "drawn":
        planner.choose_device = instead
    elif moment == "planned":
        RunStore.create = after(RunStore.create)
    elif moment == "begun":
        trainer._Trainer.train = instead
    elif moment == "saved":
        checkpoints.save = after(checkpoints.save)
    elif moment == "scored":
        sweeps.Study.tell = instead
    elif moment == "telling":
        real_tell = sweeps.Study.tell

        def tell(*args: Any, **kwargs: Any) -> None:
            optuna.storages.journal.JournalFileBackend.append_logs = half_a_line
            real_tell(*args, **kwargs)

        sweeps.Study.tell = tell


with suppress(ImportError):
    import optuna.storages.journal

HOOKS = {hook.__name__: hook for hook in (unequal, elsewhere, dies_at_step, terminated_at_step, killed)}


def start(process: dict[str, Any], rank: int, size: int, port: int, folder: Path) -> int:
    """Fork one process; its number."""
    if child := os.fork():
        return child
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.update(MINIGPT_RUNS_DIR="runs", MINIGPT_DATA_DIR="data", NO_COLOR="1")
    if size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    code = 99
    try:
        if process.get("hook"):
            HOOKS[process["hook"]](rank, process.get("value", ""))
        sys.argv = ["minigpt", *process["args"]]
        code = cli.run(process["args"])
    except BaseException:  # as the interpreter would
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(children: list[int], limit_s: float) -> list[int | None]:
    """The exit codes; None for a process that did not end in time."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + limit_s
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
            elif child not in codes and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[child] = None
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    """A round of processes for every line on stdin."""
    for line in sys.stdin:
        order = json.loads(line)
        folder, wanted = Path(order["folder"]), order["processes"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [start(process, rank, len(wanted), port, folder) for rank, process in enumerate(wanted)]
        codes = wait(children, order["limit_s"])
        texts = [{name: (folder / f"{name}{rank}").read_text("utf-8") for name in ("out", "err")} for rank in range(len(wanted))]
        print(json.dumps([{"code": code, **text} for code, text in zip(codes, texts, strict=True)]), flush=True)


if __name__ == "__main__" and train:
    main()
