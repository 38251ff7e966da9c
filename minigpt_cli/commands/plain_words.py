"""What is wrong with a value, in words that people use, and where a command that does not exist has its work done."""

from __future__ import annotations

import re

_SAID = (
    (r"Value error, ", ""),
    (r"Input should be a valid number.*", "not a number"),
    (r"Input should be a finite number", "not a finite number"),
    (r"Input should be a valid integer.*", "not a whole number"),
    (r"Input should be a valid boolean.*", "must be on or off"),
    (r"Input should be a valid string.*", "not a text"),
    (r"Input should be a valid (list|tuple).*", "not a list"),
    (r"Input should be greater than or equal to (\S+)", r"must be \1 or more"),
    (r"Input should be less than or equal to (\S+)", r"must be \1 or less"),
    (r"Input should be greater than (\S+)", r"must be more than \1"),
    (r"Input should be less than (\S+)", r"must be less than \1"),
    (r"Input should be ('[^']*')$", r"not \1"),
    (r"Input should be ('.*)$", r"must be \1"),
    (r"'[^']*' is not one of (.*'), ('[^']*')\.?$", r"must be \1 or \2"),
)  # of pydantic and Typer, and what is said for them

_ELSEWHERE = {
    "chat": "minigpt generate RUN -i, or --chat for one question",
    "serve": "minigpt generate --serve",
    "server": "minigpt generate --serve",
    "sample": "minigpt generate",
    "write": "minigpt generate",
    "evaluate": "minigpt eval",
    "score": "minigpt eval",
    "test": "minigpt eval --split test",
    "resume": "minigpt train --resume RUN",
    "finetune": "minigpt train SOURCE --init-from RUN",
    "sweep": "minigpt train --sweep lr=1e-3,3e-3",
    "search": "minigpt train --search lr=1e-4..1e-2:log",
    "presets": "minigpt train --preset",
    "preset": "minigpt train --preset NAME",
    "prepare": "minigpt tokenize",
    "diff": "minigpt runs diff A B",
    "version": "minigpt --version",
    "help": "minigpt --help",
    "learn": "minigpt --learn",
    "course": "minigpt --learn",
    "tutorial": "minigpt --learn",
}
_IN_RUNS = ("list", "leaderboard", "show", "diff", "watch", "plot", "rm", "rename", "tag", "note", "verify", "export", "import", "prune")
_OTHER_NAMES = {
    "remove": "rm", "delete": "rm", "del": "rm", "ls": "list", "top": "leaderboard", "rank": "leaderboard", "info": "show", "mv": "rename",
    "report": "plot RUN --html report.html", "chart": "plot", "compare": "diff", "tail": "watch", "check": "verify",
}  # fmt: skip


def plainly(message: str) -> str:
    """A message of pydantic or Typer about a value, without their phrases."""
    for pattern, said in _SAID:
        message = re.sub(pattern, said, message)
    return message


def instead_of(command: str, *, in_runs: bool) -> str | None:
    """The command line that does what `minigpt COMMAND` or `minigpt runs COMMAND` sounds like; None if it sounds like nothing."""
    named = _OTHER_NAMES.get(command, command)
    if named.split()[0] in _IN_RUNS and (not in_runs or named != command):
        return f"minigpt runs {named}"
    return _ELSEWHERE.get(command)
