"""The findings of `runs verify` in a run, and of `runs import` in a checkpoint of another program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt_cli.display import console
from minigpt_cli.display.tables import Column, print_table
from minigpt_cli.escaping import one_line

if TYPE_CHECKING:
    from minigpt_cli.interchange.initialise import Report
    from minigpt_cli.verify import Finding

_ROWS = 40  # tensors that did not fit; --json has all

_MARKS = {"ok": ("✓", "32"), "note": ("·", "2"), "problem": ("✗", "31")}


def print_findings(name: str, findings: Sequence[Finding]) -> None:
    """Print every finding, and the number of problems."""
    colour = console.use_colour(sys.stdout)
    width = max((len(file) for _, file, _ in findings), default=0)
    for level, file, message in findings:
        mark, code = _MARKS[level]
        mark = f"\x1b[{code}m{mark}\x1b[0m" if colour else mark
        console.write(f"{mark} {one_line(file):<{width}}  {one_line(message)}")
    wrong = sum(level == "problem" for level, _, _ in findings)
    console.write(f"{one_line(name)}: " + (f"{wrong} problem{'s' * (wrong > 1)}" if wrong else "no problem found"))


def print_tensor_report(report: Report) -> None:
    """Print the result of an import: notes to stderr; tensors that did not fit and the counts to stdout."""
    for note in report.notes:
        console.notice(note)
    rows = [["wrongly shaped", name, theirs, ours] for name, theirs, ours in report.misshaped]
    rows += [["missing", name, "", shape] for name, shape in report.missing]
    rows += [["unexpected", name, shape, ""] for name, shape in report.unexpected]
    columns = [Column("what"), Column("tensor"), Column("theirs", 1), Column("ours", 1)]
    if rows:
        print_table(columns, rows[:_ROWS], styles=["bad"] * min(len(rows), _ROWS))
        if len(rows) > _ROWS:
            console.notice(f"and {len(rows) - _ROWS} more; --json lists them all")
    console.write(report.counts())
