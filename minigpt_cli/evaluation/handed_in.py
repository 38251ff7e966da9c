"""The runs and journals that a class handed in, FOLDER/<student>/runs, opened without trust. torch is imported only where a model is run.

Nothing is written into these folders, and nothing in them is believed that can be measured: a score that is kept there is not read. What
cannot be used is a line for the teacher, and never ends the work: damaged records, symbolic links, files that are too large.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError
from minigpt_cli.evaluation.eval_target import Target, check_readable
from minigpt_cli.evaluation.statistics import Floats, cell_means
from minigpt_cli.runstore.directory import DamagedRun, Run
from minigpt_cli.runstore.journal import Event, Journal
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.runstore.weights import weights_of
from minigpt_cli.storage.atomic_io import is_inside_real_folder, one_line, size
from minigpt_cli.storage.memory import ran_out

MOST_RUNS = 200  # of a student
MOST_BYTES = 1 << 30  # of the weights of a run
MOST_WINDOW, MOST_VOCABULARY = 4096, 1 << 17  # tokens: memory grows with both


@dataclass(frozen=True)
class Student:
    """What one student handed in."""

    name: str  # of the folder
    runs: Sequence[Run] = ()  # that can be ranked
    events: Sequence[Event] = ()  # of the journal of the course
    problems: Sequence[str] = ()  # a line for all that cannot be used


@dataclass(frozen=True)
class Entry:
    """The score of one run of a student."""

    student: str
    run: Run
    nats_per_char: float
    ci95: tuple[float, float] | None
    text_sha256: str
    cells: Floats | None = field(default=None, repr=False)  # mean nats of consecutive cells of the text; None: it was not scored here


def students_in(folder: Path) -> list[Student]:
    """The students, by name. Raises UsageError if `folder` holds no folder."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UsageError(f"--class {folder}: {error.strerror or error}: name a folder that holds a folder for each student") from error
    found = [student for name in names if (student := _student(folder / name)) is not None]
    if not found:
        raise UsageError(f"--class {folder} holds no folders: put the runs of each student into {folder}/NAME/runs")
    return found


def _student(folder: Path) -> Student | None:
    """What is in a student's folder; None for a file beside the folders."""
    if not is_inside_real_folder(folder):
        if folder.is_symlink():
            return Student(folder.name, problems=["the folder is a symbolic link: copy what it points to"])
        is_packed = folder.name.lower().endswith((".zip", ".tar", ".gz", ".7z", ".rar"))
        return Student(folder.name, problems=["is an archive: unpack it into a folder"]) if is_packed else None
    inside = folder / "runs"
    if not is_inside_real_folder(inside):
        why = (
            "is a symbolic link: copy what it points to" if inside.is_symlink() else "is missing: copy the whole folder runs of the student"
        )
        return Student(folder.name, problems=[f"the folder runs {why}"])
    events: Sequence[Event] = ()
    problems: list[str] = []
    try:
        events = Journal(inside).events()
    except MiniGPTError as error:
        problems.append(f"the journal cannot be read: {one_line(str(error))}")
    runs: list[Run] = []
    for run in _listed(inside, problems):
        if problem := "damaged: " + one_line(run.reason) if isinstance(run, DamagedRun) else _problem(run):
            problems.append(f"run {one_line(run.name, 60)}: {problem}")
        elif isinstance(run, Run) and not run.without:  # the course makes such runs, and they are never ranked
            runs.append(run)
    return Student(folder.name, runs, events, problems)


def _listed(inside: Path, problems: list[str]) -> Sequence[Run | DamagedRun]:
    store = RunStore(inside)
    try:
        if (n := len(store.names())) > MOST_RUNS:
            problems.append(f"{n:,} runs, more than the {MOST_RUNS} that are read: keep the best")
            return []
        return store.list()
    except MiniGPTError as error:
        problems.append(one_line(str(error)))
        return []


def _problem(run: Run) -> str:
    """Why a run cannot be ranked; empty if it can."""
    try:
        if run.record.best is None:
            return "has no score yet: it was stopped before its first evaluation"
        is_open = run.record.arch == "plain" and run.without  # the course makes such runs; a record that hides it is a problem
        if unfit := "" if is_open else _unfit(run.config, run.record.vocab_size or 0):
            return unfit
        weights = weights_of(run.dir, run.record, "best")
        n_bytes = os.lstat(weights.path).st_size
    except MiniGPTError as error:
        return one_line(str(error))
    except OSError as error:
        return f"its weights cannot be read: {error.strerror}"
    if n_bytes > MOST_BYTES:
        return f"its weights are {size(n_bytes)}, more than the {size(MOST_BYTES)} that are read"
    return ""


def _unfit(config: RunConfig, vocabulary: int) -> str:
    """Why a model is not ranked; empty if it is. The configuration makes it; the record may say something else."""
    if left_out := getattr(config.model, "without", ""):
        return f"was trained without {left_out}, so it is not ranked"
    if config.model.block_size > MOST_WINDOW or vocabulary > MOST_VOCABULARY:
        return f"is too large for a class: a window of {config.model.block_size:,} tokens, a vocabulary of {vocabulary:,}"
    return ""


Scored = tuple[Entry | None, Sequence[str]]
"""The score of a run, or None; and what is to be said about it."""


def as_recorded(student: Student) -> Iterator[Scored]:
    """The scores that the student's records hold, each on the run's own validation text; they are not measured again."""
    for run in student.runs:
        best = run.record.best
        assert best is not None  # else it would be a problem
        yield Entry(student.name, run, best.nats_per_char, best.ci95, run.record.text_sha256), ()


def rescored(student: Student, target: Target, advance: Callable[[int, int], None]) -> Iterator[Scored]:
    """Each run of the student, scored on one text."""
    for run in student.runs:
        notices: list[str] = []
        entry = None
        try:
            entry = _rescored(student, run, target, advance, notices)
        except MiniGPTError as error:
            notices.append(str(error))
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            notices.append("scoring it needs more memory than there is")
        yield entry, [f"run {one_line(run.name, 60)}: {one_line(notice)}" for notice in notices]


def _rescored(student: Student, run: Run, target: Target, advance: Callable[[int, int], None], notices: list[str]) -> Entry:
    from minigpt_cli import checkpoints
    from minigpt_cli.evaluation.cache import cell_chars
    from minigpt_cli.evaluation.scoring import Reader, score_text

    assert target.text is not None
    check_readable(run, target)
    loaded = checkpoints.load(run, "best")
    notices += loaded.notices
    if unfit := _unfit(loaded.config, loaded.tokenizer.vocab_size):  # a save before the newest may have been read
        raise RunDamaged(unfit)
    reader = Reader(loaded.model, loaded.tokenizer, loaded.config.model.block_size, advance=advance)
    score = score_text(reader, target.text, in_parts=target.kind is not None)
    if score.text_sha256 != hashlib.sha256(target.text.encode()).hexdigest():
        raise RunDamaged("its tokenizer changes the text, so its score is of another text")
    cells = cell_means(score.char_nats, cell_chars(score.n_chars))
    return Entry(student.name, run, score.nats_per_char, score.ci95, score.text_sha256, cells)
