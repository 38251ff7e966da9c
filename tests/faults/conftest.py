"""A tiny text, tiny runs and a saboteur of system calls, for the tests that break things."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.errors import Interrupted
from minigpt_cli.events import Event
from minigpt_cli.runstore import Run, RunRecord, RunStore, now
from minigpt_cli.training.trainer import fit

TEXT = "".join("abcdefghijk"[(i * i + i // 7) % 11] for i in range(2000))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote, so fsync (20 ms each) is counted here and not waited for."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Dataset]:
    """name of a tokenizer → the tiny text in its tokens."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT)
    made: dict[str, Dataset] = {}

    def build(tokenizer: str = "char") -> Dataset:
        if tokenizer not in made:
            made[tokenizer] = prepared(DataConfig(source=str(folder / "text.txt"), tokenizer=tokenizer, vocab_size=270), folder)
        return made[tokenizer]

    return build


def config(**changes: Any) -> RunConfig:
    """A resolved configuration of seconds: `section__field=value` overrides."""
    plain: dict[str, Any] = {
        "model": {"arch": "modern", "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16},
        "optim": {"optimizer": "adamw", "batch_size": 4, "max_steps": 12, "warmup_steps": 2, "schedule": "linear", "ema": 0.0},
        "eval": {"eval_every": 4, "eval_iters": 2},
        "compute": {"device": "cpu", "precision": "fp32", "attention": "plain", "compile": "off", "threads": 1},
        "seed": 7,
    }
    for name, value in changes.items():
        section, _, field = name.partition("__")
        plain[section] = {**plain[section], field: value} if field else value
    if plain["model"]["arch"] == "bigram":
        plain["model"] = {"arch": "bigram", "block_size": 8}
    return RunConfig.model_validate(plain)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RunConfig]:
    return config


class Sittings:
    """Trains runs in one store, interrupted or not."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder)

    def begin(self, name: str, config: RunConfig, dataset: Dataset) -> Run:
        """A run as the train command leaves it before step 0."""
        run = self.store.create(name)
        run.write_config(config)
        run.write_tokenizer(dataset.tokenizer.to_json())
        run.write_record(RunRecord(name=name, created_at=now()))
        return run

    def train(
        self, run: Run, config: RunConfig, dataset: Dataset, *, stop_at: int | None = None, signal: int = 2, resume: bool = False
    ) -> list[Event]:
        """Train until the end, or until a signal arrives during step `stop_at`."""
        asked = 0

        def should_stop() -> int | None:
            nonlocal asked
            asked += 1
            return signal if stop_at is not None and asked >= stop_at else None

        with self.store.lock(run):
            point = checkpoints.load_resume(run) if resume else None
            return list(fit(run, config, dataset, resume=point, should_stop=should_stop))


@pytest.fixture
def sittings(tmp_path: Path) -> Sittings:
    return Sittings(tmp_path / "runs")


_TIMES = {
    "elapsed_s",
    "tokens_per_s",
    "created_at",
    "updated_at",
    "placed_at",
    "resume_exact_history",
    "name",
    "run",
    "files",
    "metrics_bytes",
    "checksum",
}


def timeless(value: Any) -> Any:
    """JSON without what depends on the clock, the name or the number of sittings."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in _TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def everything() -> Callable[[Run], dict[str, Any]]:
    """All that a run's directory says, times aside: weights, optimizer, counters, metrics and record."""

    def read(run: Run) -> dict[str, Any]:
        point = checkpoints.load_resume(run.refresh())
        best = checkpoints.load_tensors(run.file("best.safetensors"))
        return {
            "last": {n: t.numpy().tobytes() for n, t in point.last.items()},
            "best": {n: t.numpy().tobytes() for n, t in best.items()},
            "resume": {n: t.numpy().tobytes() for n, t in point.resume.items()},
            "state": timeless(point.resume_state),
            "metrics": [timeless(e.model_dump()) for e in run.metrics()],
            "record": timeless(run.record.model_dump()),
            "config": run.config.model_dump(),
        }

    return read


class Killed(BaseException):
    """The process died here: nothing after it may have an effect."""


class Saboteur:
    """Fails the Nth write, fsync, rename, link or open of the code under test.

    mode "kill": the call dies and every later one too, so no clean-up code has an effect; a write dies after half of its bytes.
    mode "error": the one call raises `number` (a full disk), later ones work.
    mode "signal": a second Ctrl-C arrives in the one call, later ones work.
    mode "full": that call and all later writes and creations raise ENOSPC, as on a full disk; removing works.
    """

    CALLS = ("write", "fsync", "replace", "rename", "link", "open", "mkdir", "unlink", "ftruncate")
    GROWING = ("write", "fsync", "link", "open", "mkdir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.count = 0
        self.log: list[str] = []

    @contextmanager
    def strikes(self, nth: int, mode: str, number: int = errno.ENOSPC) -> Iterator[None]:
        self.count, self.log = 0, []
        with self._monkeypatch.context() as patch:
            for name in self.CALLS:
                patch.setattr(os, name, self._sabotaged(name, getattr(os, name), nth, mode, number))
            yield

    def _sabotaged(self, name: str, real: Callable[..., Any], nth: int, mode: str, number: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if mode != "kill" and (name == "unlink" or (name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR))):
                return real(*args, **kwargs)
            self.count += 1
            self.log.append(name)
            if self.count < nth or (mode in ("error", "signal") and self.count > nth) or (mode == "full" and name not in self.GROWING):
                return real(*args, **kwargs)
            if mode == "kill":
                if self.count == nth and name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise Killed
            if mode == "signal":
                raise Interrupted("stopped at once; the last save is intact", 2)
            raise OSError(number, os.strerror(number), args[0] if isinstance(args[0], str | Path) else None)

        return call


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    return Killed


@pytest.fixture
def saboteur(monkeypatch: pytest.MonkeyPatch) -> Saboteur:
    return Saboteur(monkeypatch)
