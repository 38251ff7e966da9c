"""Check a run directory: records, checksums, weights, tokenizer, metrics, and the previous save."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from minigpt_cli.checkpoints import RESUME, read_model, read_resume, read_tokenizer
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import ANNOTATIONS, METRICS, PREVIOUS, RECORD, SAMPLES, TEACHER, TOKENIZER, Run, read_record
from minigpt_cli.runstore.records import FileRecord, RunRecord
from minigpt_cli.runstore.weights import BEST, LAST, checkpoint_of_file, unnamed
from minigpt_cli.storage import atomic_io


class Finding(NamedTuple):
    """One result of `verify`."""

    level: Literal["ok", "note", "problem"]
    file: str
    message: str


def verify(run: Run) -> Iterator[Finding]:
    """Check records, checksums, weights against configuration, tokenizer and metrics of a run, and the generation before."""
    yield from _verify_generation(run, run.dir, "")
    previous = run.file(PREVIOUS)
    if not os.path.lexists(previous):
        yield Finding("note", PREVIOUS, "there is only one generation so far")
    elif not atomic_io.is_inside_real_folder(previous):
        yield Finding("problem", PREVIOUS, "is not a folder")
    else:
        yield from _verify_generation(run, previous, f"{PREVIOUS}/")
    yield from _verify_surroundings(run)
    if run.file(TEACHER).is_dir():
        yield from _verify_teacher(run)


def _verify_teacher(run: Run) -> Iterator[Finding]:
    """What is wrong with the model that `run` learns from."""
    teacher = Run(run.file(TEACHER))
    expected = run.record.teacher
    problems = [f"{finding.file} {finding.message}" for finding in verify(teacher) if finding.level == "problem"]
    if not problems and expected is not None and teacher.record.files[BEST].sha256 != expected.sha256:
        problems.append("it is not the one that the run began with")
    yield from (Finding("problem", TEACHER, problem) for problem in problems)
    if not problems:
        known = "it is complete, and the one that the run began with" if expected else "nothing is wrong with what is saved of it"
        yield Finding("ok", TEACHER, known)


def _verify_generation(run: Run, folder: Path, prefix: str) -> Iterator[Finding]:
    try:
        record = read_record(folder / RECORD)
    except RunDamaged as error:
        yield Finding("problem", prefix + RECORD, str(error))
        return
    yield Finding("ok", prefix + RECORD, f"record of step {record.stop_step}, checksum and schema agree")
    if not record.files:
        waits = "its teacher is trained first" if run.waits else "no checkpoint was saved"
        yield Finding("note" if run.waits else "problem", prefix + RECORD, f"names no files: {waits}")
        return
    for name, expected in record.files.items():
        yield _verify_file(run, folder, name, expected, prefix)
    for name in (n for n in (BEST, LAST) if n in record.files):
        yield _verify_weights(folder, record, name, prefix)
    if folder == run.dir:
        yield from _verify_kept(run, record)
    yield _verify_resume(folder, record, prefix + RESUME)
    yield _try(prefix + TOKENIZER, "text survives the tokenizer", partial(_round_trip, folder, record))


def _verify_weights(folder: Path, record: RunRecord, name: str, prefix: str = "") -> Finding:
    return _try(prefix + name, "weights fit the configuration", lambda: read_model(folder, record, checkpoint_of_file(name) or name))


def _verify_kept(run: Run, record: RunRecord) -> Iterator[Finding]:
    """The checkpoints over time; only the newest record counts, since pruning changes no other."""
    for name, expected in record.kept.items():
        yield _verify_file(run, run.dir, name, expected, "")
        yield _verify_weights(run.dir, record, name)
    for path in unnamed(run, record):
        yield Finding("note", path.name, "is not in the record: it was written after the last save, and resuming writes it again")


def _verify_resume(folder: Path, record: RunRecord, name: str) -> Finding:
    try:
        read_resume(folder, record)
    except UsageError as error:  # imported or merged: complete, without training state
        return Finding("note", name, str(error))
    except (MiniGPTError, OSError) as error:
        return Finding("problem", name, atomic_io.one_line(str(error)))
    return Finding("ok", name, "training can be continued from here")


def _verify_file(run: Run, folder: Path, name: str, expected: FileRecord, prefix: str) -> Finding:
    if Path(name).name != name:
        return Finding("problem", prefix + RECORD, f"names a file outside of the run: {atomic_io.one_line(repr(name), 80)}")
    path, n_bytes = (run.file(name), expected.bytes) if name == METRICS else (folder / name, None)  # metrics only grow
    try:
        if n_bytes is None and (size := os.lstat(path).st_size) != expected.bytes:
            return Finding("problem", prefix + name, f"has {size:,} bytes and the record says {expected.bytes:,}")
        found = snapshots.checksum(path, n_bytes)
    except (OSError, RunDamaged) as error:
        return Finding("problem", prefix + name, atomic_io.one_line(str(error)))
    if found.bytes != expected.bytes:
        return Finding("problem", prefix + name, f"has {found.bytes:,} bytes and the record says {expected.bytes:,}")
    if found.sha256 != expected.sha256:
        return Finding("problem", prefix + name, "does not match its checksum")
    return Finding("ok", prefix + name, f"{expected.bytes:,} bytes, checksum agrees")


def _try(name: str, success: str, read: Callable[[], object]) -> Finding:
    try:
        read()
    except (MiniGPTError, OSError) as error:
        return Finding("problem", name, atomic_io.one_line(str(error)))
    return Finding("ok", name, success)


def _round_trip(folder: Path, record: RunRecord) -> None:
    tokenizer = read_tokenizer(folder, record)
    if record.vocab_size and tokenizer.vocab_size != record.vocab_size:
        raise RunDamaged(f"the tokenizer has {tokenizer.vocab_size} tokens and the record says {record.vocab_size}")
    ids = list(range(min(tokenizer.vocab_size, 1000)))
    text = "".join(tokenizer.decode([i]) for i in ids).replace("\N{REPLACEMENT CHARACTER}", "")
    if tokenizer.decode(tokenizer.encode(text)) != text:
        raise RunDamaged("decoding does not give the encoded text back")


def _verify_surroundings(run: Run) -> Iterator[Finding]:
    yield _try(METRICS, "every line is an evaluation", lambda: sum(1 for _ in run.metrics()))
    yield _try(SAMPLES, "every line is a sample", lambda: sum(1 for _ in run.samples()))
    yield _try(ANNOTATIONS, "tags and note are readable", lambda: run.annotations)
    if run.is_live():
        yield Finding("note", "", "a process is training here: files that it is writing now may look incomplete")
