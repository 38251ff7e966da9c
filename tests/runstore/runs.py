"""Runs for the tests of the store."""

from __future__ import annotations

from minigpt_cli.events import Evaluated
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, Corpus, RunRecord, SplitRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io


def make(
    store: RunStore, name: str, nats: float | None = None, *, text: str = "a" * 64, at: str = "2026-01-01T00:00:00Z", **fields: object
) -> Run:
    run = store.create(name)
    split = SplitRecord(sha256=text, n_tokens=10, n_chars=10, n_bytes=10)
    record = RunRecord(
        name=name,
        created_at=at,
        status="finished",
        arch="modern",
        corpus=Corpus(label="text", sha256=text, splits={"val": split}),
        best=None if nats is None else Best(step=1, nats_per_token=nats, nats_per_char=nats, ci95=(nats - 0.1, nats + 0.1)),
    ).model_copy(update=fields)
    atomic_io.write_atomic(run.file("run.json"), record.model_copy(update={"updated_at": at}).to_json())
    return run


def evaluated(step: int) -> Evaluated:
    return Evaluated(
        run="r",
        step=step,
        train_loss=1.0,
        val_loss=1.0,
        nats_per_char=1.0,
        lr=1e-3,
        tokens_seen=1,
        tokens_per_s=1.0,
        elapsed_s=1.0,
        is_best=True,
    )
