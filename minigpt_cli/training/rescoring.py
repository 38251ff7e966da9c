"""The figure that the leaderboard shows: the best checkpoint, read back from disk, scored once on the whole validation split."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch

from minigpt_cli import checkpoints
from minigpt_cli.data.chat import answer_chars, answers
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation import cache
from minigpt_cli.evaluation.scoring import score_ids, token_nats
from minigpt_cli.evaluation.statistics import mean_interval
from minigpt_cli.evaluation.targets import Target, score_key
from minigpt_cli.records import Best, RunRecord
from minigpt_cli.runstore import Run


def rescored(run: Run, record: RunRecord, dataset: Dataset, device: torch.device) -> RunRecord:
    """The record with `best` replaced by the exact score of the best weights in float32 and its interval."""
    if record.best is None:
        return record
    loaded = checkpoints.load(run, "best", device)
    block_size = loaded.config.model.block_size
    context = dataset.train.tokens[-block_size:]
    score = score_ids(loaded.model, loaded.tokenizer, dataset.val.tokens, context=context, block_size=block_size, device=device)
    with suppress(MiniGPTError):  # kept for comparing and for ties on the leaderboard; without it they score again
        cache.keep(run.dir, score_key(run, Target()), score)
    if (learned := answers(dataset.val.tokens, dataset.tokenizer)) is not None:
        return record.model_copy(update={"best": _of_answers(record.best.step, loaded, dataset, learned, device)})
    best = Best(
        step=record.best.step,
        nats_per_token=score.nats_per_token,
        nats_per_char=score.nats_per_char,
        ci95=score.ci95,
        whole_split=True,
    )
    return record.model_copy(update={"best": best})


def _of_answers(step: int, loaded: checkpoints.Loaded, dataset: Dataset, learned: npt.NDArray[np.bool_], device: torch.device) -> Best:
    """The score of the answers alone, each read after everything before it: what training on conversations is about."""
    block_size, val = loaded.config.model.block_size, dataset.val.tokens
    nats = token_nats(loaded.model, val, context=dataset.train.tokens[-block_size:], block_size=block_size, device=device)[learned]
    interval, tokens_per_char = mean_interval(nats), len(nats) / max(1, answer_chars(val, learned, dataset.tokenizer))
    return Best(
        step=step,
        nats_per_token=float(nats.mean()),
        nats_per_char=float(nats.mean()) * tokens_per_char,
        ci95=(interval.low * tokens_per_char, interval.high * tokens_per_char),
        whole_split=True,
    )
