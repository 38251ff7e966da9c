"""A C source as a shared library for this very processor, built once with the machine's compiler and kept in the user's cache.

Without a compiler, on Windows, or with MINIGPT_NATIVE=0 there is none, and Python does the work. A library is loaded only from
a folder that nobody else may write to.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-ffp-contract=fast")
TIMEOUT_S = 120


@cache
def load(source: Path, flags: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The library of `source`, built if need be; None where there can be none."""
    if os.environ.get("MINIGPT_NATIVE", "1") == "0" or os.name != "posix" or (folder := _cache_folder()) is None:
        return None
    path = folder / f"{source.stem}-{_fingerprint(source, flags)}.so"
    if not path.exists() and not _build(source, flags, path):
        return None
    try:
        return ctypes.CDLL(str(path)) if _is_ours(path) else None
    except OSError:  # built for another machine that shares this home, cut short, or in want of a symbol
        return None


def _build(source: Path, flags: tuple[str, ...], path: Path) -> bool:
    """Compile; whether that worked. A failure is remembered, so that it is paid for once."""
    failed = path.with_suffix(".failed")
    compiler = next((found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)
    if compiler is None or failed.exists():
        return False
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        unit, built = f"{scratch}/unit.o", f"{scratch}/built.so"
        # Linked apart from compiling: then -fopenmp adds no OpenMP library, and the one that torch has loaded is found.
        steps = (
            [compiler, *FLAGS, native, *flags, "-c", str(source), "-o", unit],
            [compiler, "-shared", "-pthread", unit, "-o", built, "-lm"],
        )
        try:
            for step in steps:
                result = subprocess.run(step, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)
                if result.returncode:
                    failed.write_bytes(result.stderr[:10_000])
                    return False
            os.replace(built, path)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return True


def _fingerprint(source: Path, flags: tuple[str, ...]) -> str:
    """Of everything that the built file depends on: source and headers beside it, flags, processor."""
    texts = [source.read_bytes(), *(header.read_bytes() for header in sorted(source.parent.glob("*.h")))]
    about = [*texts, repr((FLAGS, flags)).encode(), platform.machine().encode(), sys.platform.encode(), _processor()]
    return hashlib.sha256(b"\0".join(about)).hexdigest()[:20]


@cache
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
