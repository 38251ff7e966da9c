"""A scripted learner: plays `minigpt --learn` through stdin and stdout of a process, as a person does who reads the prompts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

PROMPTS = {
    "text:",
    "Enter continues:",
    "Enter trains it:",
    "Enter tries again, /skip leaves it out:",
    "Your bet:",
    "Confidence:",
    "Your answer:",
    ">",
}


class Learner:
    """A process of the course, and what it wrote so far."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minigpt_cli", "--learn"], cwd=folder, env=os.environ | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip

    def prompt(self) -> str:
        """Read up to the next prompt; empty at the end of the process."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if self.lines[-1] in PROMPTS or re.match(r" ?\d+ left  ", line):
                return self.lines[-1]
        return ""

    def type(self, text: str) -> None:
        """Type a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def play(self, answer: Callable[[str, list[str]], str | None]) -> None:
        """Answer prompts until the end, or until `answer` (of the prompt, and the lines before it) is None."""
        while prompt := self.prompt():
            if (typed := answer(prompt, self.lines)) is None:
                return
            self.type(typed)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> int:
        """Close stdin; the exit code."""
        out, _ = self.process.communicate(timeout=60)
        self.lines += out.splitlines()
        return self.process.returncode

    @property
    def heading(self) -> str:
        """The heading of the last screen."""
        return next((line.strip("─ ") for line in reversed(self.lines) if line.startswith("── ")), "")
