"""runs/<name>/: finding, creating, locking and reading runs. No torch.

A run directory is believed only as far as it checks out: a foreign or damaged one is listed as such and breaks
nothing. One process at a time writes to a run; the kernel frees its lock when it dies, and a record that still says
`running` without a lock is shown as `crashed`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minigpt_cli import durable, leaderboard
from minigpt_cli.config import RunConfig
from minigpt_cli.durable import check_space, write_atomic
from minigpt_cli.errors import MiniGPTError, RunDamaged, RunLocked, RunNotFound, UsageError, unknown_name
from minigpt_cli.events import Evaluated, Skipped
from minigpt_cli.records import Annotations, Base, Best, Corpus, FileRecord, RunRecord, Sitting, SplitRecord, now

__all__ = [
    "Annotations",
    "Base",
    "Best",
    "Corpus",
    "DamagedRun",
    "FileRecord",
    "Run",
    "RunRecord",
    "RunStore",
    "Sitting",
    "SplitRecord",
    "check_name",
    "check_space",
    "now",
    "resolve_runs_dir",
    "write_atomic",
]

CONFIG, RECORD, TOKENIZER, METRICS, ANNOTATIONS, LOCK = (
    "config.json", "run.json", "tokenizer.json", "metrics.jsonl", "annotations.json", ".lock",
)  # fmt: skip
PREVIOUS = "previous"
TOKENIZER_LIMIT = 64 << 20  # bytes
LINE_LIMIT = 1 << 20  # bytes of one line in metrics.jsonl
LOCK_PATIENCE_S = 0.5  # a reader's probe holds the lock for microseconds; a writer waits that out
RESERVED_NAMES = ("latest", "top")

_NAME = re.compile(r"[^\W_][\w.+=,@~-]{0,99}")


def resolve_runs_dir(flag: str | Path | None = None) -> Path:
    """Where runs live: --runs-dir, else MINIGPT_RUNS_DIR, else ./runs."""
    return Path(flag or os.environ.get("MINIGPT_RUNS_DIR") or "runs").expanduser()


def check_name(name: str) -> str:
    """`name`, if a run may have it. Raises UsageError."""
    if name in RESERVED_NAMES:
        raise UsageError(f"a run cannot be named {name!r}: that word already means the {'newest' if name == 'latest' else 'best'} run")
    if not _NAME.fullmatch(name) or len(name.encode("utf-8")) > 200 or name.endswith((durable.TEMPORARY, ".")):
        raise UsageError(
            f"{durable.one_line(repr(name), 80)} cannot name a run: "
            "use up to 100 letters, digits and . _ + = , @ ~ -, beginning with a letter or digit"
        )
    return name


class Run:
    """One readable run directory. What it read is kept; `refresh()` reads anew."""

    def __init__(self, folder: Path) -> None:
        self.dir = Path(folder)
        self.name = self.dir.name

    def __repr__(self) -> str:
        return f"Run({str(self.dir)!r})"

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.dir / name

    def refresh(self) -> Run:
        """Forget what was read before."""
        for name in ("config", "record"):
            self.__dict__.pop(name, None)
        return self

    @cached_property
    def config(self) -> RunConfig:
        """The resolved configuration. Raises RunDamaged."""
        return parse_config(durable.read_json(self.file(CONFIG)), self.file(CONFIG))

    @cached_property
    def record(self) -> RunRecord:
        """run.json; its name is the folder's, whatever it was when it was written. Raises RunDamaged."""
        record = read_record(self.file(RECORD))
        return record if record.name == self.name else record.model_copy(update={"name": self.name})

    @property
    def status(self) -> str:
        """The record's status, or `crashed` if it says running and no living process holds the lock."""
        if self.record.status == "running" and not self.is_live():
            return "crashed"
        return self.record.status

    def is_live(self) -> bool:
        """Whether a living process writes to this run."""
        return _is_locked(self.file(LOCK))

    @property
    def annotations(self) -> Annotations:
        """Tags and note; empty where there are none."""
        path = self.file(ANNOTATIONS)
        if not os.path.lexists(path):
            return Annotations()
        try:
            return Annotations.model_validate(durable.read_json(path))
        except ValidationError as error:
            raise RunDamaged(f"{path} is not valid: {durable.first_line_of(error.errors())}") from error  # type: ignore[arg-type]

    def annotate(self, annotations: Annotations) -> None:
        """Replace tags and note."""
        write_atomic(self.file(ANNOTATIONS), annotations.model_dump_json(indent=2) + "\n")

    def write_config(self, config: RunConfig) -> None:
        """Write config.json of a run that has not saved yet (later: checkpoints.continue_from, or the newest save would not match)."""
        write_atomic(self.file(CONFIG), config_text(config))
        self.refresh()

    def write_tokenizer(self, tokenizer_json: str) -> None:
        """Write tokenizer.json."""
        write_atomic(self.file(TOKENIZER), tokenizer_json)

    def write_record(self, record: RunRecord) -> RunRecord:
        """Write run.json, dated now; the record as written. The generation that it names stays: only a save changes that."""
        update: dict[str, Any] = {"name": self.name, "updated_at": now()}
        with suppress(RunDamaged):
            on_disk = read_record(self.file(RECORD))
            update |= {"files": on_disk.files, "metrics_bytes": on_disk.metrics_bytes}
        record = record.model_copy(update=update)
        write_atomic(self.file(RECORD), record.to_json())
        self.refresh()
        return record

    def append(self, event: Evaluated | Skipped) -> None:
        """Add one line to metrics.jsonl; where that fails the file is as it was. Raises MiniGPTError."""
        line = (event.model_dump_json() + "\n").encode("utf-8")
        path = self.file(METRICS)
        with durable.explained("write"):
            fd = durable.open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                before = os.fstat(fd).st_size
                try:
                    durable.write_all(fd, line)
                except OSError:
                    os.ftruncate(fd, before)
                    raise
            finally:
                os.close(fd)

    def truncate_metrics(self, n_bytes: int) -> None:
        """Drop what metrics.jsonl holds beyond the generation that training continues from."""
        path = self.file(METRICS)
        if not os.path.lexists(path):
            return
        with durable.explained("write"):
            fd = durable.open_regular(path, os.O_WRONLY)
            try:
                if os.fstat(fd).st_size > n_bytes:
                    os.ftruncate(fd, n_bytes)
                    os.fsync(fd)
            finally:
                os.close(fd)

    def metrics(self) -> Iterator[Evaluated]:
        """The evaluations so far. A last line that is still being written is not there yet. Raises RunDamaged."""
        for number, line in enumerate(self._metric_lines(), 1):
            where = f"{self.file(METRICS)} line {number}"
            content = durable.parse_json(line, where)
            if isinstance(content, dict) and content.get("event") == "evaluated":
                try:
                    yield Evaluated.model_validate(content)
                except ValidationError as error:
                    raise RunDamaged(f"{where} is not valid: {durable.first_line_of(error.errors())}") from error  # type: ignore[arg-type]

    def _metric_lines(self) -> Iterator[bytes]:
        try:
            fd = durable.open_regular(self.file(METRICS))
        except FileNotFoundError:
            return
        except OSError as error:
            raise durable.explain(error, "read") from error
        with open(fd, "rb") as stream:
            while line := stream.readline(LINE_LIMIT):
                if not line.endswith(b"\n"):
                    if len(line) == LINE_LIMIT:
                        raise RunDamaged(f"{self.file(METRICS)} has a line of more than {LINE_LIMIT:,} bytes")
                    return
                yield line


@dataclass(frozen=True)
class DamagedRun:
    """A folder in the runs directory that cannot be read as a run, and why."""

    name: str
    dir: Path
    reason: str


def read_record(path: Path) -> RunRecord:
    """The record in a run.json. Raises RunDamaged."""
    try:
        return RunRecord.from_json(durable.read_bounded(path), str(path))
    except FileNotFoundError as error:
        raise RunDamaged(f"{path} is missing: not a run, or one that never saved") from error
    except OSError as error:
        raise RunDamaged(f"cannot read {path}: {error.strerror or error}") from error


def config_text(config: RunConfig) -> str:
    """The text of config.json."""
    return config.model_dump_json(indent=2) + "\n"


def parse_config(content: Any, where: Path) -> RunConfig:
    """The configuration in the content of a config.json. Raises RunDamaged."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise RunDamaged(f"{where} is not a configuration: {durable.first_line_of(error.errors())}") from error  # type: ignore[arg-type]


class RunStore:
    """All runs in one folder."""

    def __init__(self, runs_dir: Path | str | None = None) -> None:
        self.dir = resolve_runs_dir(runs_dir)

    def names(self) -> list[str]:
        """Names of everything that may be a run, sorted; nothing is opened."""
        try:
            with os.scandir(self.dir) as entries:
                return sorted(e.name for e in entries if not e.name.startswith(".") and (e.is_symlink() or e.is_dir(follow_symlinks=False)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise durable.explain(error, "read the runs directory") from error

    def list(self) -> list[Run | DamagedRun]:
        """Every folder here, oldest first, damaged and foreign ones last."""
        found = [self._open(name) for name in self.names()]
        good = [run for run in found if isinstance(run, Run)]
        return [*sorted(good, key=lambda r: (r.record.created_at, r.name)), *(run for run in found if isinstance(run, DamagedRun))]

    def runs(self) -> list[Run]:
        """The readable runs, oldest first."""
        return [run for run in self.list() if isinstance(run, Run)]

    def _open(self, name: str) -> Run | DamagedRun:
        folder = self.dir / name
        if not durable.is_inside_real_folder(folder):
            return DamagedRun(name, folder, "a symbolic link: runs are folders of their own")
        run = Run(folder)
        try:
            _ = run.record
        except RunDamaged as error:
            return DamagedRun(name, folder, str(error))
        return run

    def find(self, wanted: str = "latest") -> Run:
        """The run of this name or prefix, `latest` (last saved) or `top` (first on the leaderboard). Raises RunNotFound, RunDamaged."""
        if wanted == "latest":
            if not (runs := self.runs()):
                raise RunNotFound(f"no runs in {self.dir} yet: start with minigpt train")
            return max(runs, key=lambda r: (r.record.updated_at, r.record.created_at, r.name))
        if wanted == "top":
            if not (rows := self.leaderboard()):
                raise RunNotFound(f"no scored runs in {self.dir} yet: start with minigpt train")
            return Run(self.dir / rows[0].run)
        names = self.names()
        if wanted not in names:
            matches = [name for name in names if wanted and name.startswith(wanted)]
            if len(matches) > 1:
                some = durable.one_line(", ".join(matches[:5]))
                raise RunNotFound(f"{durable.one_line(repr(wanted), 80)} begins the names of {len(matches)} runs: {some}")
            if not matches:
                raise self._no_such_run(wanted, names)
            wanted = matches[0]
        found = self._open(wanted)
        if isinstance(found, DamagedRun) and not self._has_previous(found):
            raise RunDamaged(f"run {durable.one_line(wanted, 100)} is damaged: {found.reason}")
        return Run(self.dir / wanted)

    def _no_such_run(self, wanted: str, names: list[str]) -> RunNotFound:
        if not names:
            return RunNotFound(f"no runs in {self.dir} yet: start with minigpt train")
        unknown = unknown_name("run", durable.one_line(wanted, 80), (durable.one_line(n, 100) for n in names[-20:]))
        return RunNotFound(f"{unknown} (in {self.dir})")

    def _has_previous(self, damaged: DamagedRun) -> bool:
        """Whether the generation before the damaged one has a readable record."""
        previous = damaged.dir / PREVIOUS
        if not durable.is_inside_real_folder(damaged.dir) or not durable.is_inside_real_folder(previous):
            return False
        with suppress(RunDamaged):
            read_record(previous / RECORD)
            return True
        return False

    def leaderboard(self, tied: Callable[[Run, Run], bool] = leaderboard.intervals_overlap) -> list[leaderboard.Row]:
        """Scored runs, best first, those scored on other texts in groups of their own."""
        return leaderboard.rank(self.runs(), tied)

    def create(self, name: str | None = None, arch: str = "run") -> Run:
        """A new, empty run directory: of this name, or `<arch>-<n>` with the next free n. Raises UsageError if it exists."""
        if name is not None:
            check_name(name)
        with durable.explained("create"):
            self.dir.mkdir(parents=True, exist_ok=True)
            if name is not None:
                try:
                    os.mkdir(self.dir / name)
                except FileExistsError as error:
                    advice = f"choose another --name, or continue it with --resume {name}"
                    raise UsageError(f"run {name!r} exists already in {self.dir}: {advice}") from error
                return Run(self.dir / name)
            taken = [int(m[1]) for n in self.names() if (m := re.fullmatch(re.escape(arch) + r"-(\d{1,9})", n))]
            number = max(taken, default=0)
            while True:
                number += 1
                with suppress(FileExistsError):
                    os.mkdir(self.dir / f"{arch}-{number}")
                    return Run(self.dir / f"{arch}-{number}")

    @contextmanager
    def new_run(self, name: str | None = None, arch: str = "run") -> Iterator[Run]:
        """A new run, locked; if the block fails before a record is written, the directory is gone again."""
        run = self.create(name, arch)
        try:
            with self.lock(run):
                yield run
        except BaseException:
            if not os.path.lexists(run.file(RECORD)):
                shutil.rmtree(run.dir, ignore_errors=True)
            raise

    @contextmanager
    def lock(self, run: Run) -> Iterator[None]:
        """Hold the right to write to `run`. Raises RunLocked while another living process holds it."""
        release = _acquire(run.file(LOCK))
        if release is None:
            raise RunLocked(f"run {run.name!r} is being trained by another process: wait for it or stop it first")
        try:
            durable.sweep(run.dir)
            if durable.is_inside_real_folder(run.dir / PREVIOUS):
                durable.sweep(run.dir / PREVIOUS)
            yield
        finally:
            release()

    def rename(self, run: Run, name: str) -> Run:
        """Give `run` another name. Raises UsageError if that exists, RunLocked if the run is live."""
        check_name(name)
        target = self.dir / name
        if os.path.lexists(target):
            raise UsageError(f"run {name!r} exists already in {self.dir}: choose another name")
        with self.lock(run), durable.explained("rename"):
            os.rename(run.dir, target)
            durable.sync_folder(self.dir)
        return Run(target)

    def remove(self, run: Run | DamagedRun) -> None:
        """Delete a run directory. Raises RunLocked if it is live."""
        if not durable.is_inside_real_folder(run.dir):
            raise RunDamaged(f"{run.dir} is a symbolic link: remove it yourself")
        with self.lock(Run(run.dir)), durable.explained("remove"):
            doomed = self.dir / f".{run.name[:100]}.{secrets.token_hex(4)}{durable.TEMPORARY}"
            os.rename(run.dir, doomed)  # gone at once for every reader, even if deleting is interrupted
            shutil.rmtree(doomed)


def _acquire(path: Path) -> Callable[[], None] | None:
    """Lock the file at `path`; how to release it, or None while another process holds it."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover
        return _acquire_without_flock(path)
    with durable.explained("lock"):
        fd = durable.open_regular(path, os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lambda: os.close(fd)  # closing frees the lock; the file stays, since unlinking it would race
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    return None
                time.sleep(0.01)


def _is_locked(path: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # pragma: no cover
        release = _acquire_without_flock(path)
        if release is not None:
            release()
        return release is None
    try:
        fd = durable.open_regular(path)
    except (OSError, MiniGPTError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: believe the record
        return True
    finally:
        os.close(fd)
    return False


def _acquire_without_flock(path: Path) -> Callable[[], None] | None:  # pragma: no cover
    """The same where there is no flock (Windows)."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=LOCK_PATIENCE_S)
    except filelock.Timeout:
        return None
    return lock.release
