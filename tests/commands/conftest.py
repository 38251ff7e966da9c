"""The command line in this process, in a folder of its own, and small runs to look at."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from minigpt_cli import cli as cli_module
from minigpt_cli.config import RunConfig
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, Corpus, RunRecord, SplitRecord
from minigpt_cli.runstore.store import RunStore

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 60
TINY = shlex.split(
    """
    --arch modern --n-layer 1 --n-head 2 --n-embd 8 --block-size 8 --batch-size 4 --max-steps 4 --eval-every 2
    --device cpu --precision fp32 --attention plain --compile off
"""
)


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no MINIGPT_ settings from outside."""
    for name in [name for name in os.environ if name.startswith("MINIGPT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run one command line and return its exit code, stdout and stderr."""

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["minigpt", *arguments])
        code = cli_module.run(arguments)
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def tiny() -> list[str]:
    """Flags of a model that trains in an instant."""
    return list(TINY)


@pytest.fixture
def text() -> str:
    """The text of text.txt."""
    return TEXT


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one real, tiny run called `first`, its text and its tokens."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli_module.run(["train", "text.txt", "--name", "first", *TINY]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def trained(trained_once: Path, home: Path) -> Path:
    """The working folder, holding a copy of the tiny run `first`."""
    shutil.copytree(trained_once, home, dirs_exist_ok=True)
    return home


def record(name: str, **changes: Any) -> RunRecord:
    """A record as a finished run has it."""
    split = SplitRecord(sha256="b" * 64, n_tokens=100, n_chars=100, n_bytes=100)
    content: dict[str, Any] = {
        "name": name,
        "status": "finished",
        "stop_reason": "max_steps",
        "created_at": "2026-01-02T03:04:05Z",
        "arch": "modern",
        "tokenizer": "char",
        "corpus": Corpus(label="text.txt", sha256="a" * 64, splits={"train": split, "val": split}),
        "n_params": 1000,
        "n_active_params": 1000,
        "vocab_size": 11,
        "best": Best(step=8, nats_per_token=2.0, nats_per_char=2.0, ci95=(1.9, 2.1), whole_split=True),
        "stop_step": 10,
        "tokens_seen": 5000,
        "elapsed_s": 12.5,
    }
    return RunRecord(**(content | changes))


@pytest.fixture
def make_run(home: Path) -> Callable[..., Run]:
    """Put a run that was never trained into ./runs, with these fields in its record."""

    def make(name: str, config: RunConfig | None = None, **changes: Any) -> Run:
        run = RunStore("runs").create(name)
        run.write_config(config or RunConfig())
        run.write_record(record(name, **changes))
        return run

    return make
