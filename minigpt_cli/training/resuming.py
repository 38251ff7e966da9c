"""What a resumed run may change, and when it is the very run that was never interrupted."""

from __future__ import annotations

import torch

from minigpt_cli.bounds import line
from minigpt_cli.checkpoints import ResumePoint
from minigpt_cli.config import CHANGES_LIMIT, RunConfig, leaves
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.runstore.records import Corpus, RunRecord, SplitRecord
from minigpt_cli.storage.atomic_io import one_line
from minigpt_cli.training.distributed import World
from minigpt_cli.training.environment import computed_by, device_name
from minigpt_cli.training.schedules import join_steps, lr_factor
from minigpt_cli.training.stopping import Progress

_MAY_CHANGE = {"optim.max_steps", "optim.time_budget"}
_MAY_CHANGE_SECTIONS = ("eval.",)
_CHANGES_BITS = {"compute.device", "compute.threads", "compute.attention", "compute.compile", "compute.fsdp", "optim.auto_batch"}


def on_processes(config: RunConfig, before: int, now: int) -> tuple[RunConfig, list[str]]:
    """The same steps on another number of processes: as many windows in each, accumulated as often as that takes; and what to say of it.

    Where the windows of a step cannot be divided among them, each process goes on as before.
    """
    if before == now:
        return config, []
    batch, accum = config.optim.batch_size, config.optim.grad_accum
    total, left_over = batch * accum * before, batch * accum * before % now
    if left_over:
        notice = f"{total} windows a step cannot be divided among {now} processes: from here on a step reads {batch * accum * now}"
    else:
        share = total // now
        batch = max(size for size in range(1, batch + 1) if share % size == 0)
        accum = share // batch
        notice = f"a step still reads {total} windows: batches of {batch} in {now} process{'es' * (now > 1)}, accumulated {accum} times"
    divided = config.model_copy(update={"optim": config.optim.model_copy(update={"batch_size": batch, "grad_accum": accum})})
    compute = config.compute.model_copy(update={"fsdp": config.compute.fsdp and now > 1})
    return divided.model_copy(update={"compute": compute}), [notice]


def divided_as(wanted: RunConfig, saved: RunConfig) -> RunConfig:
    """The saved configuration, with other windows in the step of a process where the one that is wanted has others."""
    if _windows_a_step(wanted) == _windows_a_step(saved):
        return saved
    division = {"batch_size": wanted.optim.batch_size, "grad_accum": wanted.optim.grad_accum}
    return saved.model_copy(update={"optim": saved.optim.model_copy(update=division)})


def check_changes(saved: RunConfig, wanted: RunConfig, steps_done: int) -> list[str]:
    """Reasons why the continued run will not be bit for bit the one that was saved.

    Raises UsageError that names the flag for a change that would make it another run.
    """
    before, after = leaves(saved), leaves(wanted)
    changed = _changed(saved, wanted)
    if _windows_a_step(saved) == _windows_a_step(wanted):  # the same windows in each step, divided otherwise
        may_change_bits = _CHANGES_BITS | {"optim.batch_size", "optim.grad_accum"}
    else:
        may_change_bits = _CHANGES_BITS
    for name in changed:
        if name in _MAY_CHANGE or name in may_change_bits or name.startswith(_MAY_CHANGE_SECTIONS):
            continue
        flag = "--" + name.rpartition(".")[2].replace("_", "-")
        raise UsageError(
            f"{flag} cannot change when resuming (it was {before.get(name)!r}): leave it out, or start a new run with --init-from"
        )
    if "optim.max_steps" in changed and wanted.optim.max_steps < steps_done:  # cosine-plateau passes its own
        raise UsageError(f"--max-steps {wanted.optim.max_steps} is below the {steps_done} steps that are done")
    if "optim.max_steps" in changed and wanted.optim.schedule != "constant":
        may_change_bits = may_change_bits | {"optim.max_steps"}  # it is neither of the two runs that were never resumed
    return [f"{name.rpartition('.')[2]} was {before[name]!r} and is now {after[name]!r}" for name in changed if name in may_change_bits]


def _changed(saved: RunConfig, wanted: RunConfig) -> list[str]:
    """The settings that differ, by dotted name."""
    before, after = leaves(saved), leaves(wanted)
    return [name for name in after if after[name] != before.get(name) and name != "resume_changes"]


def with_changes(point: ResumePoint, wanted: RunConfig) -> RunConfig:
    """The configuration with every setting that differs from the saved one noted in it, so that the run is never taken for one that was
    planned so from the start."""
    step, before, changed = point.resume_state["step"], leaves(point.config), _changed(point.config, wanted)
    notes = [f"{step}:{name.rpartition('.')[2]}={before[name]}" for name in changed]
    if "optim.max_steps" in changed and (scale := _tail_factor(point)) != 1:
        notes.append(f"{step}:lr_scale={scale}")
    changes = " ".join([point.config.resume_changes, *notes]).strip()
    if len(changes) > CHANGES_LIMIT:
        raise UsageError(
            f"run {point.record.name!r} was changed too often to note it: start a new run with --init-from {point.record.name}"
        )
    return wanted.model_copy(update={"resume_changes": changes})


def change_notices(point: ResumePoint, config: RunConfig) -> list[str]:
    """A line for what differs from the saved configuration and is no question of bits, and one for what becomes of the learning rate."""
    before, after, changed = leaves(point.config), leaves(config), _changed(point.config, config)
    said = [n for n in changed if n.startswith("eval.")]
    lines = [f"{name.rpartition('.')[2]} was {before[name]!r} and is now {after[name]!r}" for name in said]
    if "optim.max_steps" in changed and config.optim.schedule != "constant":
        optim, step = config.optim, point.resume_state["step"]
        at = lr_factor(max(0, step - 1), optim, config.resume_changes) * _tail_factor(point)
        lines.append(
            f"the learning rate goes from {optim.lr * at:.3g} to the schedule of {optim.max_steps:,} steps over {join_steps(optim)} steps"
        )
    return lines


def _tail_factor(point: ResumePoint) -> float:
    """What the tail of cosine-plateau has lowered the rate to. Raises RunDamaged for a state that says no such thing."""
    try:
        return Progress.from_state(point.resume_state["progress"]).tail_factor
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunDamaged(f"the training state of run {point.record.name!r} cannot be read: {one_line(str(error))}") from error


def _windows_a_step(config: RunConfig) -> int:
    return config.optim.batch_size * config.optim.grad_accum


def check_text(record: RunRecord, dataset: Dataset) -> None:
    """Raise UsageError unless the text is the one that the run was trained on."""
    if record.corpus is not None and record.corpus.sha256 != dataset.sha256:
        raise UsageError(
            f"the text of {record.corpus.label!r} has changed since this run began "
            f"(sha256 {record.corpus.sha256[:12]}, now {dataset.sha256[:12]}): "
            "restore it, or start a new run with --init-from"
        )


def inexact_reasons(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Why results may differ in the last bits from those of the uninterrupted run: where what `computed_by` says has changed, and for
    kernels that are chosen by measuring them in each session."""
    if not before:
        return ["an older minigpt did not record what computed this run"]
    changed = [name for name in (before | now) if before.get(name) != now.get(name)]
    timed = ["torch.compile chooses a GPU's kernels by timing them, anew each time"] if "cuda" in now and "compiler" in now else []
    return timed + [f"{name} was {before.get(name, 'not set')} and is now {now.get(name, 'not set')}" for name in changed]


def computed_by_all(device: torch.device, config: RunConfig, world: World) -> dict[str, str]:
    """What computes this run in all its processes; where they differ, one after the other."""
    here = world.gather(computed_by(device, compiled_graph=config.compute.compile == "on"))
    names = {name: None for one in here for name in one}
    found = {name: [one.get(name, "not set") for one in here] for name in names}
    windows = _windows_a_step(config) * world.size
    return {"the number of processes": str(world.size), "the number of windows in a step": str(windows)} | {
        n: one_line(" / ".join(values if len(set(values)) > 1 else values[:1])) for n, values in found.items()
    }


def described(
    record: RunRecord, config: RunConfig, dataset: Dataset, model: torch.nn.Module, device: torch.device, world: World
) -> RunRecord:
    """The record with everything that is known before step 0."""
    splits = {"train": dataset.train, "val": dataset.val} | ({"test": dataset.test} if dataset.test is not None else {})
    corpus = Corpus(
        label=dataset.label,
        sha256=dataset.sha256,
        dataset_dir=line(str(dataset.dir)),
        splits={
            name: SplitRecord(sha256=split.sha256, n_tokens=len(split.tokens), n_chars=split.n_chars, n_bytes=split.n_bytes)
            for name, split in splits.items()
        },
    )
    return record.model_copy(
        update={
            "status": "running",
            "stop_reason": None,
            "versions": {**record.versions, "torch": torch.__version__},
            "device": config.compute.device,
            "device_name": device_name(device),
            "threads": torch.get_num_threads(),
            "world_size": world.size,
            "computed_by": computed_by_all(device, config, world),
            "arch": config.model.arch,
            "tokenizer": dataset.tokenizer.name,
            "corpus": corpus,
            "vocab_size": dataset.tokenizer.vocab_size,
            "n_params": sum(p.numel() for p in model.parameters()),
            "n_active_params": model.n_active_params(),  # type: ignore[operator]
        }
    )
