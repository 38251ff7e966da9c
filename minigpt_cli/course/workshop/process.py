"""The learner's file in a process of runner.py, asked one thing after another, each with a time limit. No torch."""

from __future__ import annotations

import ast
import json
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from minigpt_cli.errors import RunDamaged
from minigpt_cli.storage import atomic_io

START_S = 120.0  # for Python and torch
SOURCE_LIMIT = 1 << 20  # bytes


class Unreadable(Exception):
    """The learner's file cannot be run; the message is one line."""


class Runner:
    """A process of runner.py for the learner's file, to be used in a `with`. One that does not answer is replaced at the next question."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self.ended = False  # whether the last process ended by itself

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with suppress(OSError), self._process:  # a pipe that nobody reads any more
                self._process.kill()
            self._process = None

    def ask(self, limit_s: float, *task: Any) -> dict[str, Any] | None:
        """The answer; None if there is none within `limit_s` seconds. Raises Unreadable for a file that cannot be run."""
        process = self._process or self._start()
        assert process.stdin is not None
        with suppress(OSError):  # the process ended
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        if (answer := self._next(limit_s)) is None:
            self.__exit__()
        return answer

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", "minigpt_cli.course.workshop.runner", str(self._path)]
        pipe, answers = subprocess.PIPE, queue.Queue[str]()
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
        self._process, self._answers = process, answers
        threading.Thread(target=_pass_on, args=(process.stdout, answers), daemon=True).start()
        if self._next(START_S) is None:
            raise Unreadable("Python and torch could not be started for the checks: try minigpt --version -v")
        return process

    def _next(self, limit_s: float) -> dict[str, Any] | None:
        try:
            line = self._answers.get(timeout=limit_s)
        except queue.Empty:
            line = None
        self.ended = line == ""
        answer: dict[str, Any] | None = json.loads(line) if line else None
        if answer and "broken" in answer:
            raise Unreadable(answer["broken"])
        return answer


def _pass_on(lines: IO[str], answers: queue.Queue[str]) -> None:
    """Put the lines that a process writes into the queue, and an empty one at its end."""
    with suppress(ValueError):  # closed meanwhile
        for line in lines:
            answers.put(line)
    answers.put("")


def check_syntax(path: Path) -> None:
    """Raise Unreadable for a file that is not there, or that Python cannot read."""
    try:
        content = atomic_io.read_bounded(path, SOURCE_LIMIT)
        if b"\0" in content:  # such as UTF-16, as some editors save
            raise Unreadable("it is no plain text: save it as UTF-8 in your editor")
        ast.parse(content)
    except SyntaxError as error:
        raise Unreadable(f"line {error.lineno}: {error.msg} (Python cannot read the file)") from error
    except FileNotFoundError as error:
        raise Unreadable("it is no longer in this folder: /again writes an empty one") from error
    except (OSError, ValueError, RecursionError, MemoryError, RunDamaged) as error:
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
