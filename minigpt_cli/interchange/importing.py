"""A run made from imported weights: it has everything that a run directory has, except a history."""

from __future__ import annotations

from minigpt_cli import checkpoints
from minigpt_cli.config import LoraConfig, RunConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.interchange.initialise import Report, Source, initial_weights
from minigpt_cli.models.contract import meta_model
from minigpt_cli.runstore.directory import RECORD, Run
from minigpt_cli.runstore.records import Base, RunRecord
from minigpt_cli.runstore.store import RunStore, check_name
from minigpt_cli.runstore.weights import weights_of


def import_source(
    store: RunStore, source: Source, config: RunConfig, record: RunRecord, *, name: str | None, partial: bool
) -> tuple[Run, Report]:
    """A new run with the source's weights as its last ones. Raises UsageError, and leaves no run, unless they fit or `partial`."""
    check_free(store, name)
    if (chosen := source.tokenizer) is None:
        raise UsageError(f"{source.label} has no tokenizer: name the one it was trained with, --tokenizer char|byte|gpt2|FILE")
    weights, report = initial_weights(source, config.model, chosen, partial=partial, seed=config.seed)
    skeleton = meta_model(config.model, chosen.vocab_size)
    record = record.model_copy(
        update={
            "status": "finished",
            "stop_reason": checkpoints.IMPORTED,
            "arch": config.model.arch,
            "tokenizer": chosen.name,
            "vocab_size": chosen.vocab_size,
            "n_params": sum(p.numel() for p in skeleton.parameters()),
            "n_active_params": skeleton.n_active_params(),  # type: ignore[operator]
            "base": Base(run=source.label, sha256=source.sha256),
        }
    )
    with store.new_run(name, config.model.arch) as run:
        run.write_config(config)
        run.write_tokenizer(chosen.to_json())
        record = run.write_record(record)
        try:
            checkpoints.save(run, record, last=weights, resume={}, resume_state={})
        except BaseException:
            run.file(RECORD).unlink(missing_ok=True)  # new_run removes a directory without a record
            raise
    return run.refresh(), report


def merge_run(store: RunStore, run: Run) -> Run:
    """A new run with the merged weights of `run` (adapters on a base) and its scores; `-merged` is added to the name."""
    check_mergeable(store, run.name, run.config)
    name = merged_name(run.name)
    loaded = checkpoints.load(run)
    config = loaded.config.model_copy(update={"lora": LoraConfig()})
    weights = dict(loaded.model.state_dict())
    base = Base(run=run.name, sha256=weights_of(run.dir, loaded.record, "best").file.sha256)
    changes = {"name": name, "base": base, "files": {}, "kept": {}, "metrics_bytes": 0, "placed_at": ""}
    with store.new_run(name, config.model.arch) as merged:
        merged.write_config(config)
        merged.write_tokenizer(loaded.tokenizer.to_json())
        record = loaded.record.model_copy(update=changes)
        checkpoints.save(merged, record, last=weights, resume={}, resume_state={}, best=weights)
    return merged.refresh()


def merged_name(name: str) -> str:
    """The name of the merged run of the run of this name."""
    return f"{name}-merged"


def check_mergeable(store: RunStore, name: str | None, config: RunConfig) -> None:
    """Raise UsageError, before training, for a run that has no adapters or whose merged run exists already."""
    if not config.lora.lora_rank:
        raise UsageError("--merge adds adapters to the weights that they adapt, and this run has none: train with --lora-rank")
    if name is not None:
        check_free(store, merged_name(name))


def check_free(store: RunStore, name: str | None) -> None:
    """Raise UsageError if a run of this name exists, before any work is done for another."""
    if name is not None and (store.dir / check_name(name)).exists():
        raise UsageError(f"run {name!r} exists already in {store.dir}: choose another --name")
