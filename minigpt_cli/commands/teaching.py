"""--teachers: the models that a run learns from are trained first, each in the folder of the one that learns from it.

NAME/teacher is an ordinary run, with a teacher of its own where there are several. `train --resume NAME` goes on wherever it stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.runstore.directory import RECORD, TEACHER, Run
from minigpt_cli.runstore.records import Base, Corpus
from minigpt_cli.runstore.weights import BEST
from minigpt_cli.storage.atomic_io import is_inside_real_folder

if TYPE_CHECKING:
    from minigpt_cli.training.trainer import Teacher

_LEVEL = 48  # bits of a seed below those that tell teachers apart


def check_teachers(config: RunConfig, n_processes: int, *, started_elsewhere: bool) -> None:
    """Raise UsageError where models cannot be trained one after another from random weights."""
    if not config.distil.teachers:
        return
    if n_processes > 1:
        raise UsageError("--teachers trains models one after another in one process: leave out torchrun or --teachers")
    if started_elsewhere:
        raise UsageError("--teachers trains models from the beginning: leave out --init-from or --teachers")


def has_begun(run: Run) -> bool:
    """Whether a run in this folder, or a teacher of it, can go on where it was stopped."""
    return run.file(RECORD).exists() and (bool(run.record.files) or run.file(TEACHER).is_dir())


def is_taught(run: Run) -> bool:
    """Whether the teacher of `run` is finished."""
    teacher = Run(run.file(TEACHER))
    return has_begun(teacher) and teacher.record.status == "finished"


def has_taught(run: Run) -> bool:
    """Whether `run` is the teacher of a run that has begun to learn from it."""
    return run.is_teacher and Run(run.dir.parent).record.teacher is not None


def corpus_of(run: Run) -> Corpus | None:
    """The text of a run that has not begun itself: that of its first teacher that has."""
    while run.file(TEACHER).is_dir():
        run = Run(run.file(TEACHER))
        if has_begun(run) and run.record.corpus is not None:
            return run.record.corpus
    return None


def teacher_config(config: RunConfig, spent_s: float = 0.0) -> RunConfig:
    """The configuration of the teacher of a run: one teacher fewer, other initial weights and batches, its share of the time that is left
    after `spent_s` or, where the run repeats another, that one's steps."""
    distil, optim = config.distil, config.optim
    level = distil.teachers ^ (distil.teachers - 1)  # so that the seeds of all teachers of a run differ from it and from each other
    earlier, _, last = distil.taught_by.rpartition(";")
    numbers, _, changes = last.partition(" ")
    steps, every, batches = map(int, numbers.split(":")) if last else (optim.max_steps, config.eval.eval_every, config.eval.eval_iters)
    return config.changed(
        distil={"teachers": distil.teachers - 1, "taught_by": earlier},
        optim={"max_steps": steps, "time_budget": optim.time_budget if steps else distil.teacher_time * (optim.time_budget - spent_s)},
        eval={"eval_every": every, "eval_iters": batches, "time_limit": distil.teacher_time * config.eval.time_limit}
        | {"keep_every": 0, "target_loss": 0.0},
    ).model_copy(update={"seed": config.seed ^ (level << _LEVEL), "resume_changes": changes})


def taught(run: Run, config: RunConfig) -> RunConfig:
    """The configuration of `run` with what its finished teachers were, as plain values, and computed as they were."""
    teacher = Run(run.file(TEACHER)).config
    this = f"{teacher.optim.max_steps}:{teacher.eval.eval_every}:{teacher.eval.eval_iters} {teacher.resume_changes}".strip()
    taught_by = f"{teacher.distil.taught_by};{this}".strip(";")
    return config.changed(distil={"taught_by": taught_by}).model_copy(update={"compute": teacher.compute})


def learns_from(run: Run) -> str:
    """The notice about the teacher of `run`."""
    best = Run(run.file(TEACHER)).record.best
    score = f", which has {best.nats_per_char:.4f} nats per character," if best else ""
    return f"{run.name} learns from its teacher{score} and from the text"


def base_of(run: Run) -> Base:
    """The teacher of `run` and the hash of its weights. Raises RunDamaged if it has none."""
    teacher = Run(run.file(TEACHER))
    if (best := teacher.record.files.get(BEST)) is None:
        raise RunDamaged(f"the teacher in {teacher.dir} has no best checkpoint: minigpt train --resume {run.name}")
    return Base(run=teacher.name, sha256=best.sha256)


def teacher_of(run: Run, config: RunConfig) -> Teacher | None:
    """The model that a run learns from; None for a run without teachers. Raises RunDamaged if it is missing or another one."""
    if not config.distil.teachers:
        return None
    from minigpt_cli import checkpoints
    from minigpt_cli.training.trainer import Teacher

    expected, folder = run.record.teacher, run.file(TEACHER)
    if not is_inside_real_folder(folder) or not folder.is_dir():
        raise RunDamaged(f"run {run.name!r} learns from a teacher, and {folder} is missing: restore it, or train anew")
    loaded = checkpoints.load(Run(folder))
    if expected is not None and loaded.record.files[BEST].sha256 != expected.sha256:
        raise RunDamaged(f"the teacher in {folder} is not the one that run {run.name!r} began with: restore it, or train anew")
    return Teacher(loaded.model, loaded.record.tokens_seen, loaded.record.elapsed_s)
