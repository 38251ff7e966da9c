"""Build a C source as a shared library for this processor, once, and keep it in the user's cache.

The compiler is the machine's or, if it has none, that of the package ziglang. Without a compiler, on Windows, or with MINIGPT_NATIVE=0
there is no library, and torch computes. A library is loaded only from a folder that no other user may write to.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minigpt_cli.storage.atomic_io import one_line

FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-ffp-contract=fast")
TIMEOUT_S = 120
_TRY_AGAIN_S = 24 * 3600  # after a failure of the same compiler


def load(source: Path, flags: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The library of `source`, built if necessary; None if it cannot be built, and `why_not` says why."""
    return _load(source, flags)[0]


def why_not(source: Path, flags: tuple[str, ...] = ()) -> str:
    """Why `load` returns None, in a few words; empty if it returns a library."""
    return _load(source, flags)[1]


def forget() -> None:
    """Try again at the next call."""
    _load.cache_clear()


class _NotHere(Exception):
    """There is no library; the message says why."""


@cache
def _load(source: Path, flags: tuple[str, ...]) -> tuple[ctypes.CDLL | None, str]:
    try:
        return _opened(source, flags), ""
    except _NotHere as reason:
        return None, str(reason)


def _opened(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    if os.environ.get("MINIGPT_NATIVE", "1") == "0":
        raise _NotHere("switched off by MINIGPT_NATIVE=0")
    if os.name != "posix":
        raise _NotHere("nothing is compiled on this system")
    if (folder := cache_folder()) is None:
        raise _NotHere("the user's cache folder cannot be used: it must be writable, and by this user alone")
    try:
        path = folder / f"{source.stem}-{_fingerprint(source, flags)}.so"
    except FileNotFoundError as missing:
        raise _NotHere(f"there is no {missing.filename}") from missing
    if not path.exists():
        _build(source, flags, path)
    if not _is_ours(path):
        raise _NotHere(f"{path} can be written by others: remove it")
    if "-fopenmp" in flags:
        _share_openmp()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # built for another machine with the same home folder, cut off, or without a symbol that it needs
        raise _NotHere(f"{path} cannot be loaded ({one_line(str(error), 120)}): remove it") from error


def _share_openmp() -> None:
    """Let libraries that are loaded from now on see the functions of torch's OpenMP library; on aarch64 torch keeps them to itself."""
    with suppress(OSError):  # not loaded, or by another name
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)


def _build(source: Path, flags: tuple[str, ...], path: Path) -> None:
    """Compile. A failure is kept until the compiler changes, so that it takes time once; but at most for a day, because its cause may be
    outside of the compiler (headers, space on the disk)."""
    compiler = _compiler()
    remembered = path.with_suffix(".failed")
    if failure := _failed_before(remembered, compiler.path):
        raise _NotHere(failure)
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        unit, built = f"{scratch}/unit.o", f"{scratch}/built.so"
        # Linking is a step of its own: then -fopenmp adds no OpenMP library, and the one that torch has loaded is used.
        steps = (
            [*compiler.command, *FLAGS, native, *flags, "-c", str(source), "-o", unit],
            [*compiler.command, "-shared", unit, "-o", built, *compiler.libraries],
        )
        failure = next((said for step in steps if (said := _complaint(step, scratch))), "")
        if not failure:
            os.replace(built, path)
            return
    failure = f"{compiler.path} failed: {failure}"
    with suppress(OSError):
        remembered.write_text(json.dumps({"compiler": _identity(compiler.path), "failure": failure}), encoding="utf-8")
    raise _NotHere(failure)


@dataclass(frozen=True)
class _Compiler:
    path: str
    command: tuple[str, ...]
    libraries: tuple[str, ...] = ("-pthread", "-lm")  # how to link with the C library


def _compiler() -> _Compiler:
    """The compiler that CC names, else cc, gcc or clang, else the one in the package ziglang. Raises _NotHere."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return _Compiler(found, (found,))
    with suppress(ImportError):
        import ziglang

        if found := shutil.which("zig", path=str(Path(ziglang.__file__).parent)):
            return _Compiler(found, (found, "cc"), _running_c_library())
    raise _NotHere("there is no C compiler: pip install 'minigpt-cli[native]' brings one; or install cc, gcc or clang, or name one in CC")


def compiler() -> str:
    """The path of the C compiler in use, or why there is none."""
    try:
        return _compiler().path
    except _NotHere as error:
        return f"none: {error}"


def _running_c_library() -> tuple[str, ...]:
    """On Linux the files of this process' C library; without them zig first builds stubs, for half a minute."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    except OSError:
        return ("-lm",)
    mapped = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    found = sorted(path for path in mapped if re.match(r"(libc|libm|libpthread|ld-musl)[.-]", Path(path).name))
    return ("-nostdlib", *found) if found else ("-lm",)


def _complaint(step: list[str], scratch: str) -> str:
    """The compiler's error in `step`; empty if it worked."""
    caches = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}  # read by zig alone
    try:
        result = subprocess.run(
            step, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False, env={**os.environ, **caches}
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {TIMEOUT_S} seconds"
    except OSError as error:
        return error.strerror or str(error)
    if not result.returncode:
        return ""
    lines = [one_line(line, 200) for line in result.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else f"it ended with {result.returncode}")


def _failed_before(remembered: Path, compiler: str) -> str:
    """The error of this compiler with this source within a day; empty if it must be tried."""
    try:
        if time.time() - remembered.stat().st_mtime > _TRY_AGAIN_S:
            return ""
        note = json.loads(remembered.read_text(encoding="utf-8"))
        return str(note["failure"]) if note["compiler"] == _identity(compiler) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _identity(compiler: str) -> list[str | int]:
    """What changes when a compiler is repaired, updated or replaced."""
    real = os.path.realpath(compiler)
    about = os.stat(real)
    return [compiler, real, about.st_size, about.st_mtime_ns]


def _fingerprint(source: Path, flags: tuple[str, ...]) -> str:
    """A hash of everything that the built file depends on: source and headers, flags, processor."""
    about = [*_texts(source), repr((FLAGS, flags)).encode(), platform.machine().encode(), sys.platform.encode(), processor()]
    return hashlib.sha256(b"\0".join(about)).hexdigest()[:20]


def _texts(source: Path) -> list[bytes]:
    """The source, the headers that it includes by relative paths, and theirs."""
    texts: dict[Path, bytes] = {}
    unread = [source]
    while unread:
        path = unread.pop().resolve()
        if path not in texts:
            texts[path] = path.read_bytes()
            unread += [path.parent / name.decode() for name in re.findall(rb'^#include "(.+)"', texts[path], re.MULTILINE)]
    return list(texts.values())


@cache
def processor() -> bytes:
    """What -march=native depends on; on Linux the flags of the first processor."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            head = file.read(1 << 14)
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in head.split(b"\n") if line.startswith((b"flags", b"model name", b"Features", b"CPU part"))}))


@cache
def cache_folder() -> Path | None:
    """Where compiled code is kept: a folder that only this user may write to; None if there is none."""
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
