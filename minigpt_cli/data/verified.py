"""Which token files have been hashed: 20 GB are read in half a minute, and a training should not begin with that each time.

`verified.json` in their folder says how each file was when its hash was found right: its size, times and place on the disk. A file that
is still so is not hashed again. Whatever writes to a file, or puts another in its place, changes one of them; only a failing disk
does not, and --verify-data looks for that.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from minigpt_cli.errors import MiniGPTError, RunDamaged
from minigpt_cli.storage.atomic_io import read_json, write_atomic

VERIFIED = "verified.json"
_SETTLED_NS = 2 * 10**9  # a file changed later than so long ago may change again within one tick of the file system's clock


def stamp_of(file: int | Path) -> list[int]:
    """What changes when a file does: its size, times and place on the disk. Empty where it may change again unseen, or is not there."""
    try:
        stat = os.stat(file)
    except OSError:
        return []
    settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] if settled else []


class Verified:
    """The files of a folder whose hashes were found right."""

    def __init__(self, folder: Path, *, anew: bool = False, just_written: bool = False) -> None:
        """With `anew` none was; with `just_written` all were, by the process that has written them."""
        self._path, self._just_written = folder / VERIFIED, just_written
        self._known: dict[str, Any] = {}
        self._opened: dict[str, list[Any]] = {}
        with suppress(RunDamaged):
            known = {} if anew else read_json(self._path)
            self._known = known if isinstance(known, dict) else {}

    def has(self, name: str, file: BinaryIO, sha256: str) -> bool:
        """Whether this hash of an open file was found right since the file was last changed. If not, the caller finds it out."""
        if stamp := stamp_of(file.fileno()):
            self._opened[name] = [*stamp, sha256]
        return self._just_written or (bool(stamp) and self._known.get(name) == self._opened[name])

    def save(self) -> None:
        """Every hash that was asked for is right: keep that, where the folder can be written to."""
        if self._opened and self._opened != self._known:
            with suppress(MiniGPTError):
                write_atomic(self._path, json.dumps(self._opened))
