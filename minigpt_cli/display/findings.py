"""What `runs verify` found, a line each."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minigpt_cli.display import console
from minigpt_cli.escaping import one_line

_MARKS = {"ok": ("✓", "32"), "note": ("·", "2"), "problem": ("✗", "31")}


def print_findings(name: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """Print level, file and message of every finding, and what they come to."""
    colour = console.use_colour(sys.stdout)
    width = max((len(file) for _, file, _ in findings), default=0)
    for level, file, message in findings:
        mark, code = _MARKS[level]
        mark = f"\x1b[{code}m{mark}\x1b[0m" if colour else mark
        console.write(f"{mark} {one_line(file):<{width}}  {one_line(message)}")
    wrong = sum(level == "problem" for level, _, _ in findings)
    console.write(f"{one_line(name)}: " + (f"{wrong} problem{'s' * (wrong > 1)}" if wrong else "everything checks out"))
