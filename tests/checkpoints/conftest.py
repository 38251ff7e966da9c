"""Fixtures of the checkpoints' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.sabotage import Saboteur

from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.char import CharTokenizer

from .runs import LETTERS, SETTINGS


@pytest.fixture
def saboteur() -> Saboteur:
    return Saboteur()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run directory before its first save."""
    run = RunStore(tmp_path / "runs").create("run")
    run.write_config(SETTINGS)
    run.write_tokenizer(CharTokenizer([ord(c) for c in LETTERS]).to_json())
    run.write_record(RunRecord(name="run", vocab_size=11))
    return run
