"""How much memory this process can have, and which errors say that it ran out. No torch.

The machine, the control groups of a container and `ulimit` each set a limit, and the lowest counts: at the limit of a group the kernel
kills a process without a message.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.storage.atomic_io import size

_UNKNOWN = 1 << 40  # if the system does not say
_SIGNS = re.compile(
    r"out of memory|can(?:'t|not) allocate memory|not enough memory|bad_alloc|bad_array_new_length"
    r"|can't start new thread|failed to map segment"
    # oneDNN names only what it could not make; a *descriptor* that it cannot make is an operation that it does not support.
    r"|could not (?:create|execute) a primitive(?! descriptor)|could not create a memory(?: object)?$",
    re.IGNORECASE,
)
_LIMITS = {  # limit and use, by the version of the control groups; memsw is memory and swap together
    "cgroup2": (("memory.max", "memory.current"), ("memory.high", "memory.current")),
    "cgroup": (("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes")),
}
_CACHED_FILES = {"cgroup2": ("inactive_file", "active_file"), "cgroup": ("total_inactive_file", "total_active_file")}


def ran_out(error: BaseException) -> bool:
    """Whether `error`, from Python, NumPy, torch or the libraries below it, says that memory (or room for a thread) ran out."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError | ImportError) and bool(_SIGNS.search(str(error))))


def check_memory(n_bytes: int, what: str) -> None:
    """Raise MiniGPTError if `what` needs more memory than is free."""
    if n_bytes > (memory := available_memory()):
        raise MiniGPTError(f"{what} needs {size(n_bytes)} of memory and {size(memory)} are free: use a larger machine or a smaller model")


def check_threads(count: int) -> None:
    """Raise MiniGPTError if `count` threads cannot run at once: OpenMP would end the process."""
    end, started = threading.Event(), []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        most = max(1, len(started))
        raise MiniGPTError(f"only {most} of {count} threads can be started here: use --threads {most}, or raise `ulimit -u`") from None
    finally:
        end.set()
        for thread in started:
            thread.join()


def available_memory() -> int:
    """Bytes of memory that are free without swapping, within the limits of containers and `ulimit`; a guess if the system does not say."""
    return min(_free_memory(), available_in_groups(), _available_in_shell())


def physical_memory() -> int:
    """Bytes of memory of this machine; a large number if the system does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _UNKNOWN


def _free_memory() -> int:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return physical_memory() // 2


def _available_in_shell() -> int:
    """Bytes that `ulimit -v` (of addresses) and `ulimit -d` (of data) leave."""
    free = _UNKNOWN
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        pages = [int(number) for number in Path("/proc/self/statm").read_text().split()]
        for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                free = min(free, max(limit - used * resource.getpagesize(), 0))
    return free


# ---- control groups


def available_in_groups(root: Path = Path("/")) -> int:
    """Bytes that the control groups of this process leave free without swapping; a large number if none has a limit.

    A limit holds for everything below its group, so every group counts from the process's up to the highest visible one, in both
    versions, which may be mounted together. `root` is the folder with proc/self/cgroup and proc/self/mountinfo.
    """
    return min((_left_in(folder, version) for version, folder in _groups(root)), default=_UNKNOWN)


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """The version and folder of every group that may limit this process."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        version = "cgroup" if controllers else "cgroup2"
        if controllers and "memory" not in controllers.split(","):
            continue
        for top, shown in _mounts(root, version):
            inside = Path(path).relative_to(shown) if Path(path).is_relative_to(shown) else Path()
            folder = top / (Path() if ".." in inside.parts else inside)  # a container sees its own group as the highest
            yield version, folder
            while folder != top:
                folder = folder.parent
                if _number(folder / "memory.use_hierarchy") == 0:  # version 1 only: groups below are not counted here
                    break
                yield version, folder


def _mounts(root: Path, version: str) -> Iterator[tuple[Path, Path]]:
    """The folders where groups of this version that count memory are mounted, and the group that each shows."""
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, kind = line.partition(" - ")
        shown, where = place.split()[3:5]
        system, _, options = kind.split()[:3]
        if system == version and (version == "cgroup2" or "memory" in options.split(",")):
            yield root / _plain(where).lstrip("/"), Path(_plain(shown))


def _plain(path: str) -> str:
    """A path of mountinfo, which writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _left_in(folder: Path, version: str) -> int:
    """Bytes from the group's use to its limit; cached files do not count as used."""
    left = _UNKNOWN
    cached = None
    for limit_file, use_file in _LIMITS[version]:
        limit, used = _number(folder / limit_file), _number(folder / use_file)
        if limit is not None and used is not None and limit < _UNKNOWN:
            cached = _cached_files(folder, version) if cached is None else cached
            left = min(left, max(limit - max(used - cached, 0), 0))
    return left


def _cached_files(folder: Path, version: str) -> int:
    counts = (line.split() for line in _lines(folder / "memory.stat"))
    return sum(int(count[1]) for count in counts if len(count) == 2 and count[0] in _CACHED_FILES[version])


def _number(file: Path) -> int | None:
    """The number in the file; None if there is no file, or it says `max`."""
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
