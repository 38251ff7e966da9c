"""A tiny text, tiny runs, and failing system calls, for the tests of faults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import results, tiny
from harness.sabotage import Killed, Saboteur

from minigpt_cli import checkpoints
from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.events import Event, StopReason
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.training import resuming
from minigpt_cli.training.trainer import Job, fit


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
    (folder / "text.txt").write_text(tiny.text())
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


class Sessions:
    """Trains runs in one store, interrupted or not."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder)

    def begin(self, name: str, config: RunConfig, dataset: Dataset) -> Run:
        """A run as the train command leaves it before step 0."""
        return tiny.begun(self.store, name, config, dataset.tokenizer.to_json())

    def train(
        self,
        run: Run,
        config: RunConfig,
        dataset: Dataset,
        *,
        stop_at: int | None = None,
        reason: StopReason = StopReason.INTERRUPTED_KEYBOARD,
        resume: bool = False,
    ) -> list[Event]:
        """Train until the end, or until somebody asks to stop during step `stop_at`."""
        asked = 0

        def should_stop() -> StopReason | None:
            nonlocal asked
            asked += 1
            return reason if stop_at is not None and asked >= stop_at else None

        with self.store.lock(run):
            job = Job(run, config, dataset)
            if resume:
                point = checkpoints.load_resume(run)
                changes = resuming.changes(point, config, 1)
                job = replace(job, config=changes.config, resume=point, inexact=changes.inexact)
            return list(fit(job, should_stop))


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "runs")


@pytest.fixture(scope="session")
def everything() -> Callable[[Run], dict[str, Any]]:
    """All that a run's directory says, times aside: weights, optimizer, counters, metrics, record and configuration."""
    return results.everything


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    return Killed


@pytest.fixture
def saboteur() -> Saboteur:
    return Saboteur()
