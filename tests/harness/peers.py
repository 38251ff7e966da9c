"""Command lines that train together as torchrun starts them, and what is done to one of them: `HOOKS` spoil a process before it begins.

Started by the fixture `processes`. Reads a JSON line for each round of processes, answers with one.
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
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minigpt_cli import checkpoints
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.training import evaluator, memory, planner, precision, sweeps, trainer

from .processes import Processes


def unequal(rank: int, path: str) -> None:
    """A machine of another kind: a clock of its own speed, other threads, memory, arithmetic, losses and settings. What it came to goes
    to `path`."""
    real_clock, real_measure, real_finish = time.perf_counter, evaluator.Evaluator.__call__, trainer._Trainer._finish

    def measure(self: evaluator.Evaluator, *given: Any) -> evaluator.Measured:
        found = real_measure(self, *given)
        worse = 1.0 + rank * self._state.world.rank * next(count)  # for the others every evaluation is worse than the one before
        return found._replace(val_loss=(found.val_loss or 0.0) * worse)

    def finish(self: trainer._Trainer, reason: Any, *given: Any) -> Iterator[Any]:
        weights = torch.cat([p.detach().flatten() for p in self.state.model.parameters()])
        facts = {"config": self.config.model_dump(mode="json"), "steps": self.meter.steps, "reason": reason, "run": self.run.name}
        Path(path).write_text(json.dumps({**facts, "progress": self.judge.counters.state(), "weights": weights.double().tolist()}))
        yield from real_finish(self, reason, *given)

    count = iter(range(1, 1_000_000))
    time.perf_counter = lambda: real_clock() * (1 + 3 * rank)
    precision.bf16_speedup = lambda device_type: 9.0 - 8.5 * rank
    memory.available = lambda device: int(memory._WORKSPACE / memory._SAFE_SHARE) + (1 << 19 if rank else 2 << 30)
    torch.set_num_threads(1 + rank)
    evaluator.Evaluator.__call__ = measure
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


def environments(size: int) -> list[dict[str, str]]:
    """What torchrun tells each of `size` processes; nothing where there is one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(size)}
    return [master | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)] if size > 1 else [{}]


def main() -> None:
    """A round of processes for every line on stdin."""
    processes = Processes({"MINIGPT_RUNS_DIR": "runs", "MINIGPT_DATA_DIR": "data", "NO_COLOR": "1"}, "torch.distributed.fsdp")
    for line in sys.stdin:
        order = json.loads(line)
        values = order["values"] or [""] * order["size"]
        started = []
        for rank, environment in enumerate(environments(order["size"])):
            hook = partial(HOOKS[order["hook"]], rank, values[rank]) if order["hook"] else None
            started.append(processes.start(order["args"], cwd=Path(order["folder"]), hook=hook, **environment))
        deadline = time.monotonic() + order["limit_s"]
        in_time = [process.wait(deadline - time.monotonic()) for process in started]
        ended = [process.kill() for process in started]
        print(
            json.dumps([{"code": e.code if t else None, "out": e.out, "err": e.err} for e, t in zip(ended, in_time, strict=True)]),
            flush=True,
        )


if __name__ == "__main__":
    main()
