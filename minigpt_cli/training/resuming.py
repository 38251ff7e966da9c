"""What may change when a run is resumed, and whether the result is still exactly that of the uninterrupted run."""

from __future__ import annotations

from typing import Any, NamedTuple

from minigpt_cli.checkpoints import ResumePoint
from minigpt_cli.config import RunConfig, leaves
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.resume_changes import CHANGES_LIMIT
from minigpt_cli.storage.atomic_io import one_line
from minigpt_cli.training.schedules import join_steps, lr_factor
from minigpt_cli.training.stopping import Counters

_MAY_CHANGE = {"optim.max_steps", "optim.time_budget"}
_ONLY_SHOWS = {"eval.keep_every", "eval.sample_every", "eval.sample_prompt"}
_CHANGES_BITS = {"compute.device", "compute.threads", "compute.attention", "compute.compile", "compute.fsdp", "optim.auto_batch"}


class Changes(NamedTuple):
    """How a resumed run differs from the run that was saved."""

    config: RunConfig  # the new one, with every change noted in it, so that the run can be distinguished from one planned like this
    inexact: list[str]  # why the result is not exactly that of the saved run
    notices: list[str]


def on_processes(config: RunConfig, before: int, now: int) -> tuple[RunConfig, list[str]]:
    """The same steps on another number of processes, with as many windows in each step and other batches; with notices.

    Where the windows of a step cannot be divided among the processes, each process keeps its batch.
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
    optim = {"batch_size": batch, "grad_accum": accum}
    return config.changed(optim=optim, compute={"fsdp": config.compute.fsdp and now > 1}), [notice]


def changes(point: ResumePoint, wanted: RunConfig, processes: int) -> Changes:
    """What changes if `point` continues with `wanted`, a resolved configuration, on this many processes. Raises UsageError for a setting
    that may not change, RunDamaged for a save that cannot be read."""
    saved, notices = on_processes(point.config, point.record.world_size, processes)
    step = point.resume_state["step"]
    inexact = check_changes(saved, wanted, step)
    differing = _differing(point.config, wanted)
    notes = [f"{step}:{name.rpartition('.')[2]}={before}" for name, (before, _) in differing.items() if name not in _ONLY_SHOWS]
    if "optim.max_steps" in differing and (scale := _tail_factor(point)) != 1:
        notes.append(f"{step}:lr_scale={scale}")
    noted = " ".join([point.config.resume_changes, *notes]).strip()
    if len(noted) > CHANGES_LIMIT:
        name = point.record.name
        raise UsageError(f"run {name!r} was changed too often to note it: start a new run with --init-from {name}")
    config = wanted.model_copy(update={"resume_changes": noted})
    notices += [*inexact, *(_was_and_is(name, *values) for name, values in differing.items() if name.startswith("eval."))]
    if "optim.max_steps" in differing and config.optim.schedule != "constant":
        notices.append(_rate_notice(point, config))
    return Changes(config, inexact, notices)


def check_changes(saved: RunConfig, wanted: RunConfig, steps_done: int) -> list[str]:
    """Reasons why the result will not be exactly that of the saved run.

    Raises UsageError that names the flag for a setting that may not change.
    """
    differing = _differing(saved, wanted)
    may_change_bits = set(_CHANGES_BITS)
    if saved.optim.windows == wanted.optim.windows:  # the same windows in each step, in other batches
        may_change_bits |= {"optim.batch_size", "optim.grad_accum"}
    for name, (before, _) in differing.items():
        if name in _MAY_CHANGE or name in may_change_bits or name.startswith("eval."):
            continue
        flag = "--" + name.rpartition(".")[2].replace("_", "-")
        was = " ".join(before) if isinstance(before, list | tuple) else before
        raise UsageError(f"{flag} cannot change when resuming (it was {was!r}): leave it out, or start a new run with --init-from")
    if "optim.max_steps" in differing and wanted.optim.max_steps < steps_done:  # not if unchanged: cosine-plateau trains past max_steps
        raise UsageError(f"--max-steps {wanted.optim.max_steps} is below the {steps_done} steps that are done")
    if wanted.optim.schedule != "constant":
        may_change_bits.add("optim.max_steps")  # the result is that of neither number of steps
    return [_was_and_is(name, *values) for name, values in differing.items() if name in may_change_bits]


def _differing(saved: RunConfig, wanted: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by dotted name, with old and new value."""
    before, after = leaves(saved), leaves(wanted)
    return {n: (before.get(n), value) for n, value in after.items() if value != before.get(n) and n != "resume_changes"}


def _was_and_is(name: str, before: object, after: object) -> str:
    return f"{name.rpartition('.')[2]} was {before!r} and is now {after!r}"


def _rate_notice(point: ResumePoint, config: RunConfig) -> str:
    """What happens to the learning rate of a run with another number of steps."""
    optim, step = config.optim, point.resume_state["step"]
    rate = optim.lr * lr_factor(max(0, step - 1), optim, config.resume_changes) * _tail_factor(point)
    return f"the learning rate goes from {rate:.3g} to the schedule of {optim.max_steps:,} steps over {join_steps(optim)} steps"


def _tail_factor(point: ResumePoint) -> float:
    """The factor to which the tail of cosine-plateau has lowered the rate. Raises RunDamaged for a state that cannot be read."""
    try:
        return Counters.from_state(point.resume_state["progress"]).tail_factor
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunDamaged(f"the training state of run {point.record.name!r} cannot be read: {one_line(str(error))}") from error


def inexact_reasons(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Why results may differ in the last bits from those of the uninterrupted run: `computed_by` has changed, or kernels are chosen by
    timing them in each session."""
    if not before:
        return ["an older minigpt did not record what computed this run"]
    changed = [name for name in (before | now) if before.get(name) != now.get(name)]
    timed = ["torch.compile chooses a GPU's kernels by timing them, again in each session"] if "cuda" in now and "compiler" in now else []
    return timed + [f"{name} was {before.get(name, 'not set')} and is now {now.get(name, 'not set')}" for name in changed]
