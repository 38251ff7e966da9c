"""The checkpoints of a run: the best, the last, and those that --keep-every keeps over time. No torch.

A kept checkpoint, step-002000.safetensors, holds the weights of that step, as they are evaluated, and never changes. It belongs to the
run and not to one save, so it lies in the run's folder only and previous/ has no link to it. The file is written first, and the next save
names it in the record. A file that no record names was left by a killed process: training makes it again, or `runs prune` removes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.directory import PREVIOUS, RECORD, Run
from minigpt_cli.runstore.records import KEPT_LIMIT as KEPT_LIMIT
from minigpt_cli.runstore.records import FileRecord, RunRecord
from minigpt_cli.runstore.snapshots import recorded
from minigpt_cli.storage import atomic_io

BEST, LAST = "best.safetensors", "last.safetensors"
_KEPT = re.compile(r"step-([0-9]{6,15})\.safetensors")
_SHOWN = 8  # steps that an error names


class Weights(NamedTuple):
    """The file of a checkpoint."""

    path: Path
    file: FileRecord
    step: int


def checkpoint_named(text: str) -> str:
    """`text` as the name of a checkpoint: best, last or a step in digits. Raises UsageError."""
    if text in ("best", "last"):
        return text
    if re.fullmatch(r"[0-9]{1,15}", text):
        return str(int(text))
    raise UsageError(f"there is no checkpoint {atomic_io.one_line(repr(text), 40)}: choose best, last or a step, such as 2000")


def checkpoint_of_file(name: str) -> str | None:
    """The checkpoint in a file of this name; None for any other file."""
    if name in (BEST, LAST):
        return name.partition(".")[0]
    return str(step) if (step := _step_of(name)) is not None else None


def kept_name(step: int) -> str:
    """The name of the file that keeps the weights of a step."""
    return f"step-{step:06d}.safetensors"


def _step_of(name: str) -> int | None:
    """The step of the file of a kept checkpoint; None for any other file."""
    match = _KEPT.fullmatch(name)
    return int(match[1]) if match and kept_name(int(match[1])) == name else None


def kept_steps(record: RunRecord) -> list[int]:
    """The steps whose weights are kept, in order."""
    return sorted(step for name in record.kept if (step := _step_of(name)) is not None)


def weights_of(folder: Path, record: RunRecord, which: str) -> Weights:
    """The file of the checkpoint `which` of the generation in `folder`; for best the last, where there is no best yet.

    Raises UsageError for a step that is not kept, RunDamaged if nothing is saved.
    """
    which = checkpoint_named(which)
    if which.isdecimal() and (name := kept_name(int(which))) in record.kept:
        return Weights(_home(folder) / name, record.kept[name], int(which))
    best_step = record.best.step if record.best else record.stop_step
    if which in ("best", str(best_step)) and BEST in record.files:
        return Weights(folder / BEST, record.files[BEST], best_step)
    if which.isdecimal():
        raise UsageError(f"run {_home(folder).name!r} keeps no checkpoint of step {int(which):,}: {_choices(record)}")
    return Weights(folder / LAST, recorded(folder, record, LAST), record.stop_step)


def _home(folder: Path) -> Path:
    """The run's folder."""
    return folder.parent if folder.name == PREVIOUS else folder


def _choices(record: RunRecord) -> str:
    steps = kept_steps(record)
    if not steps:
        return "choose best or last (minigpt train --keep-every N keeps others)"
    more = f" and {len(steps) - _SHOWN} more" if len(steps) > _SHOWN else ""
    return f"choose best, last, {', '.join(map(str, steps[:_SHOWN]))}{more}"


def all_weights(record: RunRecord) -> dict[str, FileRecord]:
    """Size and checksum of every checkpoint that the record names."""
    files = {name: record.files[name] for name in (BEST, LAST) if name in record.files} | record.kept
    return {which: file for name, file in files.items() if (which := checkpoint_of_file(name)) is not None}


def unnamed(run: Run, record: RunRecord) -> list[Path]:
    """The files of kept checkpoints that the record does not name."""
    with suppress(OSError):
        return sorted(run.dir / name for name in os.listdir(run.dir) if _step_of(name) is not None and name not in record.kept)
    return []


def remove_unnamed(run: Run, record: RunRecord) -> None:
    """Remove the files of kept checkpoints that the record does not name. The caller must hold the run's lock."""
    for path in unnamed(run, record):
        with atomic_io.explained("remove"), suppress(FileNotFoundError):  # each process of a training may do this
            os.unlink(path)


def thinned(steps: Sequence[int], keep: int | None, every: int | None) -> list[int]:
    """The steps that stay: the multiples of `every`, or `keep` of them, evenly spread, with the last."""
    if every is not None:
        return [step for step in steps if step % every == 0]
    n = len(steps) if keep is None else min(keep, len(steps))
    return [steps[(i + 1) * len(steps) // n - 1] for i in range(n)]


def prune_kept(run: Run, keep: int | None, every: int | None) -> None:
    """Remove the kept checkpoints that `thinned` leaves out, and those that the record does not name. The caller must hold the run's lock.

    The record is written first: a kill before the files are removed leaves files that it does not name, which do no harm.
    """
    record = run.read()
    stay = {kept_name(step) for step in thinned(kept_steps(record), keep, every)}
    record = record.model_copy(update={"kept": {name: file for name, file in record.kept.items() if name in stay}})
    atomic_io.write_atomic(run.file(RECORD), record.to_json())  # of the same time: the run is not the latest for that
    run.refresh()
    remove_unnamed(run, record)
