"""The figure that the leaderboard shows: the best checkpoint, read back from disk, scored once on the whole validation split."""

from __future__ import annotations

from contextlib import suppress

import torch

from minigpt_cli import checkpoints
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation import cache
from minigpt_cli.evaluation.eval_target import Target, score_key
from minigpt_cli.evaluation.scoring import score_split
from minigpt_cli.runstore.records import Best, RunRecord
from minigpt_cli.runstore.store import Run


def rescored(run: Run, record: RunRecord, dataset: Dataset, device: torch.device) -> RunRecord:
    """The record with `best` replaced by the exact score of the best weights in float32 and its interval."""
    if record.best is None:
        return record
    loaded = checkpoints.load(run, "best", device)
    block_size = loaded.config.model.block_size
    score = score_split(loaded.model, loaded.tokenizer, dataset, "val", block_size=block_size, device=device)
    with suppress(MiniGPTError):  # kept for comparing and for ties on the leaderboard; without it they score again
        cache.keep(run.dir, score_key(run, Target()), score)
    best = Best(
        step=record.best.step,
        nats_per_token=score.nats_per_token,
        nats_per_char=score.nats_per_char,
        ci95=score.ci95,
        whole_split=True,
    )
    return record.model_copy(update={"best": best})
