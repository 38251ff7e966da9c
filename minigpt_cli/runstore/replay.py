"""The first and the last event of a training, from its record, for the trainer and for a later look at the run."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt_cli.config import RunConfig
from minigpt_cli.events import Started, Stopped, StopReason
from minigpt_cli.runstore.records import RunRecord


def started(record: RunRecord, config: RunConfig, notices: Sequence[str] = ()) -> Started:
    """How the run begins."""
    splits, compute = record.corpus.splits if record.corpus else {}, config.compute
    return Started(
        run=record.name,
        step=0,
        arch=config.model.arch,
        n_params=record.n_params,
        n_active_params=record.n_active_params,
        vocab_size=record.vocab_size,
        train_tokens=splits["train"].n_tokens if "train" in splits else 0,
        val_tokens=splits["val"].n_tokens if "val" in splits else 0,
        max_steps=config.optim.max_steps,
        device=compute.device,
        precision=compute.precision,
        attention=compute.attention,
        compiled=compute.compile == "on",
        tokens_per_step=config.step_tokens(record.world_size),
        notices=list(notices),
    )


def stopped(record: RunRecord, reason: StopReason) -> Stopped:
    """How the run ended, at its last save."""
    best = record.best
    return Stopped(
        run=record.name,
        step=record.stop_step,
        stop_reason=reason,
        best_step=best.step if best else None,
        best_val_loss=best.nats_per_token if best else None,
        best_nats_per_char=best.nats_per_char if best else None,
        elapsed_s=record.elapsed_s,
        tokens_seen=record.tokens_seen,
    )
