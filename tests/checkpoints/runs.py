"""A run directory that is saved, for the tests of what is saved."""

from __future__ import annotations

from typing import Any

import torch

from minigpt_cli import checkpoints
from minigpt_cli.config import RunConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, RunRecord
from minigpt_cli.verify import verify

LETTERS = "abcdefghijk"
SETTINGS = RunConfig.model_validate({"model": {"arch": "modern", "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}})


def save(run: Run, step: int, *, best: bool = True, **fields: Any) -> RunRecord:
    weights = build_model(SETTINGS.model, 11, seed=step).state_dict()
    update: dict[str, Any] = {"stop_step": step, **fields}
    if best:
        update["best"] = Best(step=step, nats_per_token=1.0, nats_per_char=1.0)
    record = run.record.model_copy(update=update)
    resume = {"moment": torch.full((2,), float(step))}
    return checkpoints.save(run, record, last=weights, resume=resume, resume_state={"step": step}, best=weights if best else None)


def problems(run: Run) -> dict[str, str]:
    return {finding.file: finding.message for finding in verify(Run(run.dir)) if finding.level == "problem"}
