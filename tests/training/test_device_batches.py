"""Batches of conversations: only answers are targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minigpt_cli.config import RunConfig
from minigpt_cli.data.encoding import prepared
from minigpt_cli.errors import UsageError
from minigpt_cli.training.device_batches import IGNORED, DeviceBatches
from minigpt_cli.training.distributed import World


def batches(folder: Path, question: str, answer: str, **data: str) -> DeviceBatches:
    """Windows of 8 bytes, one a batch, of ten times the same question and answer."""
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    (folder / "chats.jsonl").write_text((json.dumps(row) + "\n") * 10)
    settings = {"model": {"arch": "bigram", "block_size": 8}, "optim": {"batch_size": 1}}
    config = RunConfig.model_validate({**settings, "data": {"source": str(folder / "chats.jsonl"), "tokenizer": "byte", **data}})
    return DeviceBatches(config, prepared(config.data, folder), torch.device("cpu"), World())


@pytest.mark.parametrize("sampling", ["epoch", "random"])
def test_only_answers_are_learned(sampling: str, tmp_path: Path) -> None:
    draw = batches(tmp_path, "q" * 60, "a", sampling=sampling)
    learned = [y[y != IGNORED].tolist() for _, y in (draw(step, 0) for step in range(50))]
    assert all(learned)
    assert not any(ord("q") in targets for targets in learned)
    assert [draw(step, 0)[1].tolist() for step in (3, 3)] == [draw(3, 0)[1].tolist()] * 2


def test_answers_that_no_window_contains_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt_cli.training.device_batches._MOST_AHEAD", 2)
    draw = batches(tmp_path, "q" * 500, "a")
    with pytest.raises(UsageError, match="no answer lies in the next 2 batches"):
        list(map(draw, range(100), [0] * 100))
