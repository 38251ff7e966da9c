"""Two generations of a run's files on disk. At every instant one of them is complete. No torch.

A generation is a run.json and the files that it names with their checksums. A new one is written beside the old one with
temporary names and flushed to disk. Then the old one is hard-linked into `previous/`, and the new files are renamed, run.json
last. A kill at any point leaves the newest or `previous/` complete. Files of two generations cannot be mixed, because each
is read only against the checksums of its own record.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import RunDamaged
from minigpt_cli.runstore.directory import CONFIG, METRICS, PREVIOUS, RECORD, Run, before_notice, parse_config, read_record
from minigpt_cli.runstore.records import FileRecord, RunRecord
from minigpt_cli.storage import atomic_io, memory
from minigpt_cli.storage.atomic_io import Written

LIVE_RETRIES = 20
LIVE_PAUSE_S = 0.02  # the renames of a save take milliseconds; a reader that meets them tries again

_CHUNK = 1 << 22
_SUMS_KEPT = 100  # two generations of a run are twelve files
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_summed_before: dict[tuple[int, int, int, int], str] = {}  # (device, inode, size, mtime) of files that this process wrote or read → sha256

T = TypeVar("T")


def checksum(path: Path, n_bytes: int | None = None) -> FileRecord:
    """Size and SHA-256 of a regular file, or of its first `n_bytes`. Raises RunDamaged for anything else, and for more bytes than this
    machine has memory (a sparse file can claim any size, and reading takes time); OSError if it cannot be read."""
    fd = atomic_io.open_regular(path)
    try:
        found = os.fstat(fd).st_size
        if (found if n_bytes is None else min(found, n_bytes)) > memory.physical_memory():
            raise RunDamaged(f"{path} has {atomic_io.size(found)}, more than this machine's memory")
        digest, length = hashlib.sha256(), 0
        while piece := os.read(fd, _CHUNK if n_bytes is None else min(_CHUNK, n_bytes - length)):
            digest.update(piece)
            length += len(piece)
    finally:
        os.close(fd)
    return FileRecord(sha256=digest.hexdigest(), bytes=length)


def recorded(folder: Path, record: RunRecord, name: str) -> FileRecord:
    """The size and checksum of a file in the record of `folder`. Raises RunDamaged if the record lacks it."""
    if not record.files:
        raise RunDamaged(Run(folder).waits or f"run {record.name!r} has not saved a checkpoint yet")
    if name not in record.files:
        raise RunDamaged(f"{folder / RECORD} names no {name}")
    return record.files[name]


def read_file(folder: Path, record: RunRecord, name: str, limit: int) -> bytes:
    """The content of a small file of the generation in `folder`. Raises RunDamaged if its checksum is not the record's."""
    data = atomic_io.read_bounded(folder / name, limit)
    if atomic_io.sha256(data) != recorded(folder, record, name).sha256:
        raise RunDamaged(f"{folder / name} does not match its checksum")
    return data


def read_config(folder: Path, record: RunRecord) -> RunConfig:
    """The configuration of the generation in `folder`. Raises RunDamaged."""
    data = read_file(folder, record, CONFIG, atomic_io.JSON_LIMIT)
    return parse_config(atomic_io.parse_json(data, str(folder / CONFIG)), folder / CONFIG)


def matches(path: Path, expected: FileRecord) -> bool:
    """Whether the file has the recorded checksum; one that this process wrote or checked, and that has not changed, is not read again."""
    try:
        if (stat := os.lstat(path)).st_size != expected.bytes:
            return False
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in _summed_before:
            _keep_sum(key, checksum(path).sha256)
        return _summed_before[key] == expected.sha256
    except (OSError, RunDamaged):
        return False


def is_whole(folder: Path, record: RunRecord) -> bool:
    """Whether every file that the record names exists with its checksum (except metrics.jsonl, which only grows)."""
    return bool(record.files) and all(matches(folder / name, file) for name, file in record.files.items() if name != METRICS)


def forget() -> None:
    """Forget which files were checked; for tests, which damage files within one tick of the clock."""
    _summed_before.clear()


class Staging:
    """The files of the next generation, with temporary names. `commit` makes them the newest; the end of the block removes the rest."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._temporary: dict[str, Path] = {}

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._temporary.values():
            with suppress(OSError):
                os.unlink(path)

    def add(self, name: str, write: Callable[[int], Written]) -> FileRecord:
        """Stage a file with the content that `write` writes to a descriptor."""
        with atomic_io.staged(self._run.file(name)) as (fd, temporary):
            written = write(fd)
        self._temporary[name] = temporary
        remember(temporary, written.sha256)
        return FileRecord(sha256=written.sha256, bytes=written.n_bytes)

    def add_bytes(self, name: str, data: bytes) -> FileRecord:
        """Stage `data`."""

        def write(fd: int) -> Written:
            atomic_io.write_all(fd, data)
            return Written(atomic_io.sha256(data), len(data))

        return self.add(name, write)

    def keep(self, name: str, expected: FileRecord) -> FileRecord:
        """Keep an unchanged file, from either generation. Raises RunDamaged if neither has it undamaged."""
        if matches(self._run.file(name), expected):
            return expected
        source = self._run.file(PREVIOUS) / name
        if not matches(source, expected):
            raise RunDamaged(f"{self._run.file(name)} does not match its checksum: run minigpt runs verify {self._run.name}")
        temporary = atomic_io.temporary_beside(self._run.file(name))
        self._temporary[name] = temporary
        _link_or_copy(source, temporary)
        return expected

    def commit(self) -> None:
        """Link the generation before into previous/, then rename the staged files, run.json last. A new record alone is only renamed, and
        previous/ stays the older generation."""
        if self._temporary.keys() - {RECORD}:
            _keep_previous(self._run)
        for name in sorted(self._temporary, key=lambda n: n == RECORD):
            atomic_io.rename(self._temporary[name], self._run.file(name))
            del self._temporary[name]
        atomic_io.sync_folder(self._run.dir)


def remember(path: Path, sha256: str) -> None:
    """This process has just written or checked the file, so `matches` need not read it again."""
    stat = os.lstat(path)
    _keep_sum((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns), sha256)


def _keep_sum(key: tuple[int, int, int, int], sha256: str) -> None:
    _summed_before[key] = sha256
    while len(_summed_before) > _SUMS_KEPT:
        del _summed_before[next(iter(_summed_before))]


def _keep_previous(run: Run) -> None:
    """Make previous/ the newest generation if that is complete; else keep previous/, which is then the one to read."""
    try:
        record = read_record(run.file(RECORD))
    except RunDamaged:
        return
    if not is_whole(run.dir, record):
        return
    previous = run.file(PREVIOUS)
    if not atomic_io.is_inside_real_folder(previous):
        with suppress(FileNotFoundError):
            os.unlink(previous)  # a link or a file with this name
        os.mkdir(previous)
    for name in [*(n for n in record.files if n != METRICS), RECORD]:  # in any order: meanwhile the newest is complete
        _put_link(run.file(name), previous / name)
    for name in os.listdir(previous):
        if name != RECORD and name not in record.files:
            with suppress(OSError):
                os.unlink(previous / name)
    atomic_io.sync_folder(previous)
    atomic_io.sync_folder(run.dir)


def _put_link(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(source), os.lstat(target)):
            return  # rename() of two links to one file does nothing and would leave the temporary name
    temporary = atomic_io.temporary_beside(target)
    try:
        _link_or_copy(source, temporary)
        atomic_io.rename(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    """Copy for file systems without hard links."""
    reading = atomic_io.open_regular(source)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | atomic_io.NOFOLLOW | atomic_io.CLOEXEC | atomic_io.BINARY, 0o666)
        try:
            while piece := os.read(reading, _CHUNK):
                atomic_io.write_all(writing, piece)
            os.fsync(writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def read_newest(run: Run, read: Callable[[Path, RunRecord], T]) -> tuple[T, list[str]]:
    """The result of `read(folder, record)` for the newest generation, or for the one before, with a notice, if the newest raises
    RunDamaged. While a process writes to the run the newest is tried again for a moment. Raises the newest's RunDamaged if both fail."""
    tries = 0
    while True:
        try:
            return _read_generation(run.dir, read), []
        except RunDamaged as error:
            newest_error = error
        tries += 1
        if tries == LIVE_RETRIES or not run.is_live():
            break
        time.sleep(LIVE_PAUSE_S)
    previous = run.file(PREVIOUS)
    if not atomic_io.is_inside_real_folder(previous):
        raise newest_error
    try:
        result = _read_generation(previous, read)
    except RunDamaged as error:
        raise RunDamaged(f"{newest_error}; the previous save is unusable too: {error}") from newest_error
    return result, [before_notice(run.name, newest_error, read_record(previous / RECORD))]


def _read_generation(folder: Path, read: Callable[[Path, RunRecord], T]) -> T:
    try:
        return read(folder, read_record(folder / RECORD))
    except FileNotFoundError as error:
        raise RunDamaged(f"{os.fsdecode(error.filename or folder)} is missing") from error
