"""Atomic writes, reads of untrusted files, and operating-system errors as one line.

A file is written beside its final name (`.name.<random>.tmp`), flushed to disk and renamed, so that at every instant the name
has the old content or the new. Reads are bounded in size, do not follow a symbolic link at the last step, and open only
regular files (a FIFO would hang). JSON is refused if it holds NaN, a duplicate key, half of a surrogate pair or too many
levels.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError

JSON_LIMIT = 4 << 20  # bytes; a run.json is a few kilobytes
JSON_DEPTH = 100  # lists in lists; ours have five
TEMPORARY = ".tmp"
_ABANDONED_S = 24 * 3600.0
RENAME_PATIENCE_S = 1.0 if os.name == "nt" else 0.0

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK = getattr(os, "O_NONBLOCK", 0)
CLOEXEC = getattr(os, "O_CLOEXEC", 0)
BINARY = getattr(os, "O_BINARY", 0)

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and go on",
    errno.EDQUOT: "the disk quota is used up: free some space and go on",
    errno.EROFS: "the file system is read-only: write elsewhere, with --runs-dir or MINIGPT_DATA_DIR",
    errno.EACCES: "permission denied: check who owns the folder, or write elsewhere, with --runs-dir or MINIGPT_DATA_DIR",
    errno.EPERM: "permission denied: check who owns the folder, or write elsewhere, with --runs-dir or MINIGPT_DATA_DIR",
    errno.EIO: "the disk reports an input/output error: check it before going on",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
    errno.ENFILE: "too many open files on this machine",
    errno.ENAMETOOLONG: "the path is too long: choose a shorter name or --runs-dir",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EFBIG: "the file is larger than this file system allows",
}


class Written(NamedTuple):
    """What was written."""

    sha256: str
    n_bytes: int


def final_name(path: str) -> str:
    """The path of a file whose temporary name may be given."""
    return re.sub(rf"(^|[/\\])\.([^/\\]+)\.[0-9a-f]{{8}}{re.escape(TEMPORARY)}$", r"\1\2", path)


def explain(error: OSError, doing: str) -> MiniGPTError:
    """The one-line error for an operating-system error met while `doing` something."""
    where = f" {final_name(os.fsdecode(error.filename))}" if isinstance(error.filename, str | bytes) else ""
    reason = _ADVICE.get(error.errno or 0) or (error.strerror or str(error))
    return MiniGPTError(f"cannot {doing}{where}: {reason}")


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an OSError inside the block into a MiniGPTError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise explain(error, doing) from error


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of `data`; a short write is continued."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view[: 1 << 24]) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut; where folders cannot be opened (Windows), nothing."""
    if os.name != "posix":  # pragma: no cover
        return
    fd = os.open(folder, os.O_RDONLY | CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_beside(path: Path) -> Path:
    """A new name beside `path` that `sweep` recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


@contextmanager
def staged(path: Path) -> Iterator[tuple[int, Path]]:
    """A new temporary file beside `path`, open for writing; flushed to disk at the end, removed on failure. The caller renames it."""
    temporary = temporary_beside(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | CLOEXEC | BINARY, 0o666)
    try:
        try:
            yield fd, temporary
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def check_parent(path: Path) -> None:
    """Raise UsageError if the folder of a file that is to be written is not there."""
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}: make it first")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace the content of `path` by `data`; no reader sees a part of it, also after a crash. Raises MiniGPTError."""
    path = Path(path)
    with explained("write"):
        with staged(path) as (fd, temporary):
            write_all(fd, data.encode("utf-8") if isinstance(data, str) else data)
        replace(temporary, path)
        sync_folder(path.parent)


def replace(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; if that fails, `temporary` is removed."""
    try:
        rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def rename(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`. Windows refuses while somebody reads the file at `path`: there it is tried for a while."""
    deadline = time.monotonic() + RENAME_PATIENCE_S
    while True:
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)


def leftovers(folder: Path) -> list[str]:
    """Paths of temporary files in `folder`: left by killed writers, or about to be renamed."""
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.name.startswith(".") and entry.name.endswith(TEMPORARY)]
    return []


def sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder`. The caller must hold the run's locks."""
    for path in leftovers(folder):
        with suppress(OSError):
            os.unlink(path)


def sweep_abandoned(folder: Path, prefix: str = ".", suffix: str = TEMPORARY) -> None:
    """Remove files and folders with such names in `folder` that have not changed for a day: killed processes left them."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(suffix):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime < _ABANDONED_S:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. Raises RunDamaged for a symbolic link, folder, device or pipe; OSError where it cannot be opened."""
    try:
        fd = os.open(path, flags | NOFOLLOW | NONBLOCK | CLOEXEC | BINARY, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise RunDamaged(f"{path} is a symbolic link: a run directory holds its own files only") from error
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise RunDamaged(f"{path} is not a regular file") from error
        raise
    except ValueError as error:  # a null character, which no path may hold
        raise RunDamaged(f"{one_line(str(path), 100)} cannot be a path: {error}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RunDamaged(f"{path} is not a regular file")
    return fd


def read_bounded(path: Path, limit: int = JSON_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises RunDamaged if it is larger, OSError if it cannot be read."""
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise RunDamaged(f"{path} has {size:,} bytes, more than the {limit:,} that such a file may have")
        pieces, length = [], 0
        while piece := os.read(fd, min(1 << 20, limit + 1 - length)):
            pieces.append(piece)
            length += len(piece)
            if length > limit:
                raise RunDamaged(f"{path} grew beyond {limit:,} bytes while it was read")
        return b"".join(pieces)
    finally:
        os.close(fd)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


_STRICT = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_unique)  # made once: a text may have millions of lines


def parse_json(data: bytes, where: str) -> Any:
    """The value of strict JSON: UTF-8, no NaN or Infinity, no duplicate key, no half of a surrogate pair (which no file or terminal could
    be given), no more than JSON_DEPTH levels. Raises RunDamaged naming `where`."""

    try:
        text = data.decode("utf-8")
        value = _STRICT.decode(text)
        if text.count("[") + text.count("{") > JSON_DEPTH:
            _check_depth(value)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError as error:
        raise RunDamaged(f"{where} is not valid JSON: nested too deeply") from error
    except UnicodeEncodeError as error:
        raise RunDamaged(f"{where} is not valid JSON: it holds half of a surrogate pair, \\u{ord(error.object[error.start]):x}") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RunDamaged(f"{where} is not valid JSON: {one_line(str(error))}") from error


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(JSON_DEPTH + 1):
        level = [item for part in level for item in (part.values() if type(part) is dict else part if type(part) is list else ())]
        if not level:
            return
    raise ValueError("nested too deeply")


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """The value in a JSON file. Raises RunDamaged if it is missing, too large or not strict JSON."""
    try:
        return parse_json(read_bounded(path, limit), str(path))
    except FileNotFoundError as error:
        raise RunDamaged(f"{path} is missing") from error
    except OSError as error:
        raise RunDamaged(f"cannot read {path}: {error.strerror or error}") from error


def one_line(text: str, limit: int = 300) -> str:
    """`text` without line breaks or control characters, cut to `limit` characters: safe inside an error message."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    flat = " ".join(flat.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def is_inside_real_folder(folder: Path) -> bool:
    """Whether `folder` is a folder itself and not a symbolic link to one."""
    try:
        return stat.S_ISDIR(os.lstat(folder).st_mode)
    except OSError:
        return False


def check_space(folder: Path, n_bytes: int, advice: str = "") -> None:
    """Raise MiniGPTError unless the disk of `folder` (or of its nearest existing parent) has room for `n_bytes` more."""
    folder = Path(folder).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        if os.name == "posix":
            disk = os.statvfs(folder)
            free = disk.f_bavail * disk.f_frsize
        else:  # pragma: no cover
            free = shutil.disk_usage(folder).free
    except OSError:
        return  # the disk does not say how much is free: the write will show it
    if free < n_bytes:
        advice = advice or "free some space or choose another --runs-dir"
        raise MiniGPTError(f"{folder} has {size(free)} free and {size(n_bytes)} are needed: {advice}")


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def size(n_bytes: int) -> str:
    """`n_bytes` as text: 1.5 MiB."""
    value = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def first_line_of(errors: Iterable[dict[str, Any]]) -> str:
    """The first of pydantic's errors as `field: message`, on one line."""
    for error in errors:
        where = ".".join(str(part) for part in error["loc"])
        return one_line(f"{where}: {error['msg']}" if where else str(error["msg"]))
    return "not valid"
