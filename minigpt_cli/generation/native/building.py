"""decoder.c as a shared library for this very processor, built once with the C compiler of the machine and kept in the user's cache.

Without a compiler, on Windows, or with MINIGPT_NATIVE=0 there is none, and NumPy decodes. The library is loaded only from a
folder that nobody else may write to.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("decoder.c")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread")
TIMEOUT_S = 120


@cache
def library() -> ctypes.CDLL | None:
    """The library, built if need be; None where there can be none."""
    if os.environ.get("MINIGPT_NATIVE", "1") == "0" or os.name != "posix":
        return None
    folder = _cache_folder()
    if folder is None:
        return None
    path = folder / f"decoder-{_fingerprint()}.so"
    if not path.exists() and not _build(path):
        return None
    try:
        return ctypes.CDLL(str(path)) if _is_ours(path) else None
    except OSError:  # built for another machine that shares this home, or cut short
        return None


def is_built() -> bool:
    """Whether the next `library()` need not compile."""
    folder = _cache_folder()
    return folder is not None and (folder / f"decoder-{_fingerprint()}.so").exists()


def compiler() -> str | None:
    """The path of a C compiler; $CC first."""
    return next((found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)


def _build(path: Path) -> bool:
    """Compile; whether that worked. A failure is remembered, so that it is paid for once."""
    failed = path.with_suffix(".failed")
    found = compiler()
    if found is None or failed.exists():
        return False
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    command = [found, *FLAGS, native, str(SOURCE), "-o", str(temporary), "-lm"]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)
        if result.returncode == 0:
            os.replace(temporary, path)
            return True
        failed.write_bytes(result.stderr[:10_000])
    except (OSError, subprocess.TimeoutExpired):
        pass
    finally:
        temporary.unlink(missing_ok=True)
    return False


@cache
def _fingerprint() -> str:
    """Of everything that the built file depends on: source, flags, processor."""
    about = [SOURCE.read_bytes(), repr(FLAGS).encode(), platform.machine().encode(), sys.platform.encode(), _processor()]
    return hashlib.sha256(b"\0".join(about)).hexdigest()[:20]


def _processor() -> bytes:
    """What -march=native depends on: on Linux the flags of the first processor."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            head = file.read(1 << 14)
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in head.split(b"\n") if line.startswith((b"flags", b"model name", b"Features", b"CPU part"))}))


@cache
def _cache_folder() -> Path | None:
    """A folder of this user's alone."""
    from platformdirs import user_cache_dir

    folder = Path(user_cache_dir("minigpt", appauthor=False)) / "native"
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError:
        return None
    return folder if _is_ours(folder) else None


def _is_ours(path: Path) -> bool:
    stat = os.lstat(path)
    return stat.st_uid == os.getuid() and not stat.st_mode & 0o022
