"""The journal of the course, <runs>/.course.jsonl: one JSON object a line. Lines are only added. It is all that the course remembers.

A kill can cut the last line off. Such a line is ignored, and removed when the next one is added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minigpt_cli.bounds import Line, Moment
from minigpt_cli.errors import RunDamaged
from minigpt_cli.runstore import locks
from minigpt_cli.runstore.records import now
from minigpt_cli.storage import atomic_io

JOURNAL, LOCK = ".course.jsonl", ".course.lock"
_LIMIT = 4 << 20  # bytes; an hour writes some tens of thousands, and a class is read at once, with 20 bytes of memory for each

Kind = Literal["started", "entered", "ran", "passed", "bet", "revealed", "asked", "guessed", "hint", "skipped", "finished"]


class Event(BaseModel):
    """One thing that happened in the course. What `data` holds depends on the kind of `event`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    t: Moment
    lesson: Line
    step: Annotated[int, Field(ge=0, le=1000)]
    event: Kind
    data: dict[str, Any] = {}


class Journal:
    """The journal in a folder of runs."""

    def __init__(self, runs_dir: Path) -> None:
        self.dir = runs_dir
        self.path = runs_dir / JOURNAL

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the journal during the block. Raises RunLocked while another process writes to it."""
        with atomic_io.explained("create"):
            self.dir.mkdir(parents=True, exist_ok=True)
        with locks.holding(self.dir / LOCK, f"the course in {self.dir} is open in another terminal: continue there, or close it first"):
            yield

    def append(self, lesson: str, step: int, event: Kind, data: dict[str, Any] | None = None) -> Event:
        """Add an event, with the present time, and return it; it is on the disk then. Raises MiniGPTError."""
        made = Event(t=now(), lesson=lesson, step=step, event=event, data=data or {})
        line = json.dumps(made.model_dump(), ensure_ascii=False, allow_nan=False) + "\n"
        with atomic_io.explained("write"):
            self.dir.mkdir(parents=True, exist_ok=True)
            fd = atomic_io.open_regular(self.path, os.O_WRONLY | os.O_CREAT)
            try:
                whole = atomic_io.read_bounded(self.path, _LIMIT).rfind(b"\n") + 1
                os.ftruncate(fd, whole)
                os.lseek(fd, whole, os.SEEK_SET)
                atomic_io.write_all(fd, line.encode("utf-8"))
                os.fsync(fd)
            finally:
                os.close(fd)
        return made

    def events(self) -> Sequence[Event]:
        """All events, oldest first; none if there is no journal. Raises RunDamaged for a line that is not an event."""
        try:
            content = atomic_io.read_bounded(self.path, _LIMIT)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise atomic_io.explain(error, "read the journal of the course") from error
        whole = content[: content.rfind(b"\n") + 1]
        return [self._event(line, number) for number, line in enumerate(whole.split(b"\n")[:-1], 1)]

    def _event(self, line: bytes, number: int) -> Event:
        where, advice = f"{self.path} line {number}", "move the file away to begin the course again"
        try:
            return Event.model_validate(atomic_io.parse_json(line, where))
        except RunDamaged as error:
            raise RunDamaged(f"{error}: {advice}") from error
        except ValidationError as error:
            raise RunDamaged(f"{where} is not an event: {atomic_io.first_line_of(error.errors())}: {advice}") from error  # type: ignore[arg-type]
