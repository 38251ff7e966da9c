"""From the files of a run to a model, and back.

`save` writes a generation of files that a kill at any instant cannot lose (see snapshots.py). `load` and `load_resume` check
every file. If the newest generation is damaged they read the one before, say so in a notice, and never mix the two. Opening
executes nothing: files are safetensors and JSON, whose size is checked before memory is allocated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigpt_cli.accel.install import install
from minigpt_cli.bounds import COUNT_LIMIT
from minigpt_cli.config import RunConfig
from minigpt_cli.data.parts import masked_after
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError
from minigpt_cli.models import lora
from minigpt_cli.models.contract import build_model, meta_model
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import (
    CONFIG,
    METRICS,
    PREVIOUS,
    RECORD,
    TOKENIZER,
    TOKENIZER_LIMIT,
    Run,
    config_text,
    read_record,
)
from minigpt_cli.runstore.records import FileRecord, RunRecord
from minigpt_cli.runstore.weights import BEST, LAST, Weights, all_weights, checkpoint_named, kept_name, remove_unnamed, weights_of
from minigpt_cli.storage import atomic_io, safetensors
from minigpt_cli.storage.memory import check_memory
from minigpt_cli.storage.safetensors import TensorInfo
from minigpt_cli.tokenization.contract import Tokenizer
from minigpt_cli.tokenization.pretrained import saved_tokenizer

RESUME = "resume.safetensors"
_STATE = "resume_state"  # key of the JSON in resume.safetensors' header
IMPORTED = "imported"  # the stop_reason of a run that was not trained here and has one set of weights
_BASES = 8  # the base of adapters may have adapters itself, so many times
SLACK = 1 << 20  # bytes that stay free beyond what a save needs


@dataclass(frozen=True)
class Loaded:
    """A run in memory, ready to score or to generate."""

    model: nn.Module  # in eval mode
    tokenizer: Tokenizer
    config: RunConfig
    record: RunRecord
    step: int
    notices: list[str] = field(default_factory=list)
    address: str = ""  # by which the run and this checkpoint are found again: its folder, or FOLDER@CHECKPOINT

    @property
    def name(self) -> str:
        """The run's name."""
        return self.record.name


@dataclass(frozen=True)
class ResumePoint:
    """Everything that the next training step depends on."""

    last: dict[str, Tensor]
    resume: dict[str, Tensor]
    resume_state: dict[str, Any]
    record: RunRecord
    config: RunConfig
    tokenizer: Tokenizer
    notices: list[str] = field(default_factory=list)


def save(
    run: Run,
    record: RunRecord,
    *,
    last: Mapping[str, Tensor],
    resume: Mapping[str, Tensor],
    resume_state: Mapping[str, Any],
    best: Mapping[str, Tensor] | None = None,
    config: RunConfig | None = None,
) -> RunRecord:
    """Write a new generation and return its record; `best=None` keeps the best so far, `config=None` the configuration.

    `record` is the one that `load_resume` or the last `save` returned, changed. Raises MiniGPTError, with the generation before complete
    and no temporary file left.
    """
    tensors = {LAST: last, RESUME: resume} | ({BEST: best} if best is not None else {})
    metadata = {LAST: {"format": "pt"}, BEST: {"format": "pt"}, RESUME: {_STATE: json.dumps(resume_state, allow_nan=False)}}
    with run.writing(), atomic_io.explained(f"save run {run.name!r}"), snapshots.Staging(run) as staging:
        n_bytes = SLACK + sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        atomic_io.check_space(run.dir, n_bytes, f"free some space and go on with --resume {run.name}" if record.files else "")
        files = {n: staging.add(n, partial(safetensors.write, tensors=group, metadata=metadata[n])) for n, group in tensors.items()}
        if best is None and (best_so_far := (record.files or run.record.files).get(BEST)):
            files[BEST] = staging.keep(BEST, best_so_far)
        files |= {name: snapshots.checksum(run.file(name)) for name in (CONFIG, TOKENIZER)}
        if config is not None and atomic_io.sha256(text := config_text(config).encode("utf-8")) != files[CONFIG].sha256:
            files[CONFIG] = staging.add_bytes(CONFIG, text)
        files[METRICS] = _flushed_metrics(run)
        record = record.model_copy(update={"files": files, "metrics_bytes": files[METRICS].bytes})
        return _commit(run, record, staging)


def keep(run: Run, record: RunRecord, step: int, weights: Mapping[str, Tensor]) -> RunRecord:
    """Write the weights of a step into a file that stays. Returns the record that names it, which the next save writes. Raises
    MiniGPTError with nothing lost."""
    path = run.file(kept_name(step))
    with run.writing(), atomic_io.explained(f"keep step {step} of run {run.name!r}"):
        atomic_io.check_space(run.dir, SLACK + sum(t.numel() * t.element_size() for t in weights.values()))
        with atomic_io.staged(path) as (fd, temporary):
            written = safetensors.write(fd, weights, {"format": "pt"})
        atomic_io.replace(temporary, path)
    file = FileRecord(sha256=written.sha256, bytes=written.n_bytes)
    return record.model_copy(update={"kept": record.kept | {path.name: file}})


def continue_from(run: Run, point: ResumePoint, record: RunRecord, config: RunConfig) -> RunRecord:
    """Make the generation of `point` the newest, with this record and configuration, and remove later metrics, samples and checkpoints over
    time. Returns the record as written. Raises MiniGPTError with nothing lost."""
    files = dict(point.record.files)
    with run.writing(), atomic_io.explained(f"continue run {run.name!r}"), snapshots.Staging(run) as staging:
        for name in (n for n in files if n not in (METRICS, CONFIG)):
            staging.keep(name, files[name])
        text = config_text(config).encode("utf-8")
        if atomic_io.sha256(text) == files[CONFIG].sha256:
            staging.keep(CONFIG, files[CONFIG])
        else:
            files[CONFIG] = staging.add_bytes(CONFIG, text)
        kept = {name: file for name, file in point.record.kept.items() if os.path.lexists(run.file(name))}  # others were pruned since
        record = record.model_copy(update={"files": files, "kept": kept, "metrics_bytes": point.record.metrics_bytes})
        record = _commit(run, record, staging)
        remove_unnamed(run, record)
        run.truncate_metrics(record.metrics_bytes)
        run.truncate_samples(point.resume_state["step"])
    return record


def _commit(run: Run, record: RunRecord, staging: snapshots.Staging) -> RunRecord:
    record = run.dated(record)
    staging.add_bytes(RECORD, record.to_json().encode("utf-8"))
    staging.commit()
    run.refresh()
    return record


def _flushed_metrics(run: Run) -> FileRecord:
    path = run.file(METRICS)
    fd = atomic_io.open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return snapshots.checksum(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file, on the CPU. Raises UsageError if it is missing, RunDamaged if it is not sound."""
    try:
        return safetensors.read(Path(path)).tensors()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def load(run: Run, which: str = "best", device: str | torch.device = "cpu") -> Loaded:
    """The model of the best, the last or a kept step, in eval mode, with its run. Raises UsageError for a step that is not kept, RunDamaged
    if neither generation is complete."""
    which = checkpoint_named(which)
    read = partial(read_model, which=which)
    loaded, notices = snapshots.read_newest(run, read)
    if which == "best" and loaded.record.files.get(BEST) is None and loaded.record.stop_reason != IMPORTED:
        notices.append(f"run {run.name!r} has no best checkpoint yet: using its last, of step {loaded.step}")
    address = str(run.dir.resolve()) + ("" if which == "best" else f"@{which}")
    return Loaded(loaded.model.to(device), loaded.tokenizer, loaded.config, loaded.record, loaded.step, notices, address)


def load_resume(run: Run) -> ResumePoint:
    """The newest complete generation to continue from, every file checked. Raises RunDamaged if there is none."""

    def read(folder: Path, record: RunRecord) -> ResumePoint:
        point = read_resume(folder, record)
        for name in (LAST, RESUME, TOKENIZER):
            snapshots.remember(folder / name, record.files[name].sha256)  # `continue_from` keeps them without reading them again
        return point

    point, notices = snapshots.read_newest(run, read)
    return ResumePoint(point.last, point.resume, point.resume_state, point.record, point.config, point.tokenizer, notices)


def read_model(folder: Path, record: RunRecord, which: str, depth: int = 0) -> Loaded:
    config, tokenizer = snapshots.read_config(folder, record), read_tokenizer(folder, record)
    weights = weights_of(folder, record, which)
    tensors = _read_tensors(weights, config, tokenizer.vocab_size)
    model = build_model(config.model, tokenizer.vocab_size)
    if (end := masked_after(config.data, tokenizer)) is not None:
        model.end_of_text = end  # type: ignore[assignment]
    try:
        if config.lora.lora_rank:
            tensors = lora.merged(_base_weights(folder, record, depth), tensors, config.lora)
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:  # only with adapters: the rest is checked against the configuration before it is read
        raise RunDamaged(f"{weights.path} holds adapters for another model: {atomic_io.one_line(str(error))}") from error
    return Loaded(install(model.eval()), tokenizer, config, record, weights.step)


def frozen_weights(run: Run, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the adapters of `run` are added to: its base's, or those that `stored` holds complete. Raises RunDamaged."""
    return _base_weights(run.dir, run.record) | {name: tensor for name, tensor in stored.items() if not lora.is_adapter(name)}


def _base_weights(folder: Path, record: RunRecord, depth: int = 0) -> dict[str, Tensor]:
    """The tensors of the run whose weights have the hash in the record of a run with adapters; it may have another name now."""
    runs_dir = folder.parent.parent if folder.name == PREVIOUS else folder.parent
    wanted = record.base
    if wanted is None:
        raise RunDamaged(f"run {record.name!r} holds adapters, and its record does not name their base")
    if depth == _BASES:
        raise MiniGPTError(f"run {record.name!r} needs more than {_BASES} runs of adapters in a row: merge one with minigpt runs import")
    others = sorted(entry.name for entry in runs_dir.iterdir() if entry.name not in (wanted.run, record.name))
    for name in [wanted.run, *others] if Path(wanted.run).name == wanted.run else others:
        for candidate in (runs_dir / name, runs_dir / name / PREVIOUS):
            with suppress(RunDamaged, FileNotFoundError):
                found = read_record(candidate / RECORD)
                which = next((w for w, file in all_weights(found).items() if file.sha256 == wanted.sha256), None)
                if which is not None:
                    return dict(read_model(candidate, found, which, depth + 1).model.state_dict())
    raise RunDamaged(
        f"run {record.name!r} holds adapters for run {atomic_io.one_line(wanted.run, 80)!r} (weights {wanted.sha256[:12]}), "
        f"and no run in {runs_dir} has those weights"
    )


def read_resume(folder: Path, record: RunRecord) -> ResumePoint:
    config, tokenizer = snapshots.read_config(folder, record), read_tokenizer(folder, record)
    if BEST in record.files and not snapshots.matches(folder / BEST, record.files[BEST]):
        raise RunDamaged(f"{folder / BEST} does not match its checksum")
    last = _read_tensors(weights_of(folder, record, "last"), config, tokenizer.vocab_size)
    resume = safetensors.read(folder / RESUME, snapshots.recorded(folder, record, RESUME))
    state = atomic_io.parse_json(resume.metadata.get(_STATE, "null").encode("utf-8", "surrogatepass"), f"the state in {folder / RESUME}")
    if state == {} and not resume.infos:
        raise UsageError(f"{folder} was imported or merged and has no training to continue: start a new run from it with --init-from")
    if not isinstance(state, dict) or type(state.get("step")) is not int or not 0 <= state["step"] <= COUNT_LIMIT:
        raise RunDamaged(f"{folder / RESUME} holds no training state")
    return ResumePoint(last, resume.tensors(), state, record, config, tokenizer)


def read_tokenizer(folder: Path, record: RunRecord) -> Tokenizer:
    return saved_tokenizer(snapshots.read_file(folder, record, TOKENIZER, TOKENIZER_LIMIT), folder / TOKENIZER)


def _read_tensors(weights: Weights, config: RunConfig, vocab_size: int) -> dict[str, Tensor]:
    check = partial(_check_against_model, weights.path, config, vocab_size)
    tensors = safetensors.read(weights.path, weights.file, check).tensors()
    safetensors.check_finite(weights.path, tensors)
    return tensors


def _check_against_model(path: Path, settings: RunConfig, vocab_size: int, found: Mapping[str, TensorInfo]) -> None:
    """Raise RunDamaged unless the file holds exactly the tensors of this configuration's model. Nothing is allocated."""
    config: Any = settings.model
    if getattr(config, "n_layer", 0) > len(found):
        raise RunDamaged(f"{path} holds {len(found)} tensors, too few for the {config.n_layer} layers of its configuration")
    skeleton = meta_model(config, vocab_size)
    in_base: Set[str] = set()
    if settings.lora.lora_rank:
        lora.attach(skeleton, settings.lora, 0)
        in_base = skeleton.state_dict().keys() - lora.trained(skeleton, skeleton.state_dict()).keys()
    safetensors.check_shapes(path, found, {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}, in_base)
    check_model_fits(config, vocab_size)


def check_model_fits(config: Any, vocab_size: int, copies: int = 1) -> int:
    """The number of parameters of this configuration's model. Raises MiniGPTError if `copies` of them (weights, gradients, averages) do
    not fit in memory. Nothing is allocated."""
    n_params = sum(p.numel() for p in meta_model(config, vocab_size).parameters())
    check_memory(4 * n_params * copies, f"a model of {n_params:,} parameters with block size {config.block_size:,}")
    return n_params
