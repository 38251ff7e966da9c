"""One run directory: its files, record, metrics and notes. No torch.

Every file is checked before it is used: a foreign or damaged one raises RunDamaged, one line that says what is wrong and
where.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.events import Evaluated, Sampled, Skipped
from minigpt_cli.runstore import locks
from minigpt_cli.runstore.records import Annotations, RunRecord, later_than, now
from minigpt_cli.storage import atomic_io
from minigpt_cli.storage.atomic_io import write_atomic

CONFIG, RECORD, TOKENIZER, METRICS, SAMPLES, ANNOTATIONS, LOCK, ANNOTATIONS_LOCK = (
    "config.json", "run.json", "tokenizer.json", "metrics.jsonl", "samples.jsonl", "annotations.json", ".lock", ".annotations.lock",
)  # fmt: skip
PREVIOUS, TEACHER = "previous", "teacher"
PATIENCE_S = 10.0  # several may tag a run at once; each takes as long as the disk does
TOKENIZER_LIMIT = 64 << 20  # bytes
LINE_LIMIT = 1 << 20  # bytes of one line in metrics.jsonl or samples.jsonl


class Run:
    """One readable run directory. Files are read once; `refresh()` reads them again."""

    def __init__(self, folder: Path) -> None:
        self.dir = Path(folder)
        around = Path(os.path.abspath(self.dir)).parent if self.dir.name == TEACHER else None
        teaches = around is not None and os.path.lexists(around / RECORD)
        self.name: str = f"{Run(around).name}/{TEACHER}" if around and teaches else self.dir.name
        self.checkpoint: str | None = None  # best, last or a step, where RUN@STEP or the path of a file named it
        self.notices: list[str] = []  # a notice if the newest record or configuration is damaged and the save before it is read

    def __repr__(self) -> str:
        return f"Run({str(self.dir)!r})"

    @property
    def is_teacher(self) -> bool:
        """Whether it is in the folder of the run that learns from it; its name is then NAME/teacher."""
        return "/" in self.name

    @property
    def waits(self) -> str:
        """Why it has nothing to load, where its teacher is trained first; otherwise ""."""
        if self.record.files or not self.file(TEACHER).is_dir():
            return ""
        return f"run {self.name!r} has not begun, since its teacher is trained first: minigpt train --resume {self.name} goes on"

    @property
    def label(self) -> str:
        """The name, with @ and the checkpoint if one was named."""
        return self.name if self.checkpoint is None else f"{self.name}@{self.checkpoint}"

    def checkpoint_to_read(self, asked: str | None) -> str:
        """The checkpoint that is `asked` for, or that RUN@STEP or a path named; the best if none is. Raises UsageError if both are and
        differ."""
        if asked is not None and self.checkpoint not in (None, asked):
            raise UsageError(f"{atomic_io.one_line(self.label, 100)} and checkpoint {asked} are two checkpoints: name one of them")
        return asked or self.checkpoint or "best"

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.dir / name

    def refresh(self) -> Run:
        """Forget what was read before."""
        self.notices.clear()
        for name in ("config", "record"):
            self.__dict__.pop(name, None)
        return self

    @cached_property
    def config(self) -> RunConfig:
        """The resolved configuration, or that of the save before if the newest is damaged. Raises RunDamaged."""
        try:
            return self._config_in(self.dir)
        except RunDamaged as error:
            self.__dict__["record"] = self._record_before(error)  # so that both are of one generation
            return self._config_in(self.dir / PREVIOUS)

    @cached_property
    def record(self) -> RunRecord:
        """run.json, or that of the save before if the newest is damaged. Its name is the folder's, also after a rename. Raises
        RunDamaged."""
        try:
            return self.read()
        except RunDamaged as error:
            return self._record_before(error)

    @property
    def without(self) -> str:
        """The parts that the model was trained without, as --without names them; empty for a whole model."""
        try:
            return str(getattr(self.config.model, "without", ""))  # a record from elsewhere may name another architecture
        except RunDamaged:
            return "unknown parts" if self.record.arch == "plain" else ""

    def read(self) -> RunRecord:
        """Read the newest record now. Raises RunDamaged, also if the save before can be read."""
        record = read_record(self.file(RECORD)).model_copy(update={"name": self.name})
        self.__dict__["record"] = record
        return record

    def _config_in(self, folder: Path) -> RunConfig:
        path, expected = folder / CONFIG, self.record.files.get(CONFIG)
        try:
            data = atomic_io.read_bounded(path)
        except OSError as error:
            raise RunDamaged(f"cannot read {path}: {error.strerror or error}") from error
        if expected is not None and atomic_io.sha256(data) != expected.sha256:
            raise RunDamaged(f"{path} does not match its checksum")
        return parse_config(atomic_io.parse_json(data, str(path)), path)

    def _record_before(self, error: RunDamaged) -> RunRecord:
        """The record of the save before the newest, which is damaged; raises `error` again if there is none."""
        previous = self.dir / PREVIOUS
        if not atomic_io.is_inside_real_folder(self.dir) or not atomic_io.is_inside_real_folder(previous):
            raise error
        try:
            record = read_record(previous / RECORD)
        except RunDamaged:
            raise error from None
        self.notices[:] = [before_notice(self.name, error, record)]
        return record.model_copy(update={"name": self.name})

    @property
    def status(self) -> str:
        """The record's status, or `crashed` if it says running and no living process holds the lock."""
        if self.record.status == "running" and not self.is_live():
            return "crashed"
        return self.record.status

    def is_live(self) -> bool:
        """Whether a living process writes to this run."""
        return locks.is_locked(self.file(LOCK))

    @property
    def annotations(self) -> Annotations:
        """Tags and note; empty if there are none."""
        path = self.file(ANNOTATIONS)
        if not os.path.lexists(path):
            return Annotations()
        try:
            return Annotations.model_validate(atomic_io.read_json(path))
        except ValidationError as error:
            raise RunDamaged(f"{path} is not valid: {atomic_io.first_line_of(error.errors())}") from error  # type: ignore[arg-type]

    @contextmanager
    def annotating(self) -> Iterator[None]:
        """Hold the right to change tags and note, also while the run is trained. Raises RunLocked."""
        refusal = f"the tags of run {self.name!r} are being changed by another process: try again"
        with locks.holding(self.file(ANNOTATIONS_LOCK), refusal, PATIENCE_S):
            yield

    def annotate(self, change: Callable[[Annotations], Annotations]) -> Annotations:
        """Replace tags and note by the result of `change`, while no other process changes them. Raises UsageError for values that are not
        allowed, RunLocked."""
        self._annotated(change)  # raises before the lock makes a file
        with self.annotating():
            annotations = self._annotated(change)
            write_atomic(self.file(ANNOTATIONS), annotations.model_dump_json(indent=2) + "\n")
        return annotations

    def _annotated(self, change: Callable[[Annotations], Annotations]) -> Annotations:
        try:
            return change(self.annotations)
        except ValidationError as error:
            raise UsageError(f"run {self.name!r} cannot have this tag or note: {atomic_io.first_line_of(error.errors())}") from error  # type: ignore[arg-type]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to change the record and its files; this process may have it already. Raises RunLocked."""
        refusal = f"run {self.name!r} is being trained by another process: wait for it or stop it first"
        with nullcontext() if locks.is_ours(self.file(LOCK)) else locks.holding(self.file(LOCK), refusal):
            yield

    def dated(self, record: RunRecord) -> RunRecord:
        """`record` as it is saved now: with this name and time, and placed after every earlier save."""
        with suppress(RunDamaged):
            if record.placed_at:
                record = record.model_copy(update={"placed_at": max(record.placed_at, read_record(self.file(RECORD)).placed_at)})
        moment = now()
        before = record.placed_at or _last_placed(self.dir.parent)
        return record.model_copy(update={"name": self.name, "updated_at": moment, "placed_at": max(moment, later_than(before))})

    def write_config(self, config: RunConfig) -> None:
        """Write config.json of a run that has not saved yet (later: checkpoints.continue_from, or the newest save would not match)."""
        write_atomic(self.file(CONFIG), config_text(config))
        self.refresh()

    def write_tokenizer(self, tokenizer_json: str) -> None:
        """Write tokenizer.json."""
        write_atomic(self.file(TOKENIZER), tokenizer_json)

    def write_record(self, record: RunRecord) -> RunRecord:
        """Write run.json with the present time; the record as written. It names the same files as before: only a save changes them.
        Raises RunLocked while another process trains here."""
        with self.writing():
            with suppress(RunDamaged):
                on_disk = read_record(self.file(RECORD))
                record = record.model_copy(update={name: getattr(on_disk, name) for name in ("files", "kept", "metrics_bytes")})
            record = self.dated(record)
            write_atomic(self.file(RECORD), record.to_json())
        self.refresh()
        return record

    def append(self, event: Evaluated | Skipped | Sampled) -> None:
        """Add one line to metrics.jsonl, of a sample to samples.jsonl. Raises MiniGPTError, with the file unchanged."""
        line = (event.model_dump_json() + "\n").encode("utf-8")
        path = self.file(SAMPLES if isinstance(event, Sampled) else METRICS)
        with atomic_io.explained("write"):
            fd = atomic_io.open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                before = os.fstat(fd).st_size
                try:
                    atomic_io.write_all(fd, line)
                except OSError:
                    os.ftruncate(fd, before)
                    raise
            finally:
                os.close(fd)

    def truncate_metrics(self, n_bytes: int) -> None:
        """Remove lines of metrics.jsonl that are later than the generation that training continues from."""
        self._truncate(self.file(METRICS), n_bytes)

    def truncate_samples(self, step: int) -> None:
        """Remove the samples after `step`, and all from the first line on that cannot be read."""
        kept = 0
        with suppress(RunDamaged):
            for line, sample in self._samples():
                if sample.step > step:
                    break
                kept += len(line)
        self._truncate(self.file(SAMPLES), kept)

    @staticmethod
    def _truncate(path: Path, n_bytes: int) -> None:
        if not os.path.lexists(path):
            return
        with atomic_io.explained("write"):
            fd = atomic_io.open_regular(path, os.O_WRONLY)
            try:
                if os.fstat(fd).st_size > n_bytes:
                    os.ftruncate(fd, n_bytes)
                    os.fsync(fd)
            finally:
                os.close(fd)

    def metrics(self) -> Iterator[Evaluated]:
        """The evaluations so far, without a last line that is still being written. Raises RunDamaged."""
        for number, line in enumerate(self._lines(METRICS), 1):
            where = f"{self.file(METRICS)} line {number}"
            content = atomic_io.parse_json(line, where)
            if isinstance(content, dict) and content.get("event") == "evaluated":
                try:
                    yield Evaluated.model_validate(content)
                except ValidationError as error:
                    raise RunDamaged(f"{where} is not valid: {atomic_io.first_line_of(error.errors())}") from error  # type: ignore[arg-type]

    def samples(self) -> Iterator[Sampled]:
        """What the model wrote while it was trained, oldest first. Raises RunDamaged."""
        for _, sample in self._samples():
            yield sample

    def _samples(self) -> Iterator[tuple[bytes, Sampled]]:
        for number, line in enumerate(self._lines(SAMPLES), 1):
            where = f"{self.file(SAMPLES)} line {number}"
            try:
                yield line, Sampled.model_validate(atomic_io.parse_json(line, where))
            except ValidationError as error:
                raise RunDamaged(f"{where} is not a sample: {atomic_io.first_line_of(error.errors())}") from error  # type: ignore[arg-type]

    def _lines(self, name: str) -> Iterator[bytes]:
        try:
            fd = atomic_io.open_regular(self.file(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise atomic_io.explain(error, "read") from error
        with open(fd, "rb") as stream:
            while line := stream.readline(LINE_LIMIT):
                if not line.endswith(b"\n"):
                    if len(line) == LINE_LIMIT:
                        raise RunDamaged(f"{self.file(name)} has a line of more than {LINE_LIMIT:,} bytes")
                    return
                yield line


def before_notice(name: str, error: RunDamaged, record: RunRecord) -> str:
    """The notice that the save before the newest is used."""
    return f"the newest save of run {name!r} is damaged or incomplete ({error}): using the one before it, of step {record.stop_step}"


@dataclass(frozen=True)
class DamagedRun:
    """A folder in the runs directory that cannot be read as a run, and why."""

    name: str
    dir: Path
    reason: str


def read_record(path: Path) -> RunRecord:
    """The record in a run.json. Raises RunDamaged."""
    try:
        return RunRecord.from_json(atomic_io.read_bounded(path), str(path))
    except FileNotFoundError as error:
        raise RunDamaged(f"{path} is missing: not a run, or one that never saved") from error
    except OSError as error:
        raise RunDamaged(f"cannot read {path}: {error.strerror or error}") from error


def _last_placed(runs_dir: Path) -> str:
    """The latest place of a run in this folder."""
    places = [""]
    for entry in runs_dir.iterdir():
        with suppress(RunDamaged):
            places.append(read_record(entry / RECORD).place)
    return max(places)


def config_text(config: RunConfig) -> str:
    """The text of config.json."""
    return config.model_dump_json(indent=2) + "\n"


def parse_config(content: Any, where: Path) -> RunConfig:
    """The configuration in the content of a config.json. Raises RunDamaged."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise RunDamaged(f"{where} is not a configuration: {atomic_io.first_line_of(error.errors())}") from error  # type: ignore[arg-type]
