"""The findings of `runs diagnose`, and the line about them at the end of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt_cli.display import console
from minigpt_cli.escaping import one_line

if TYPE_CHECKING:
    from minigpt_cli.evaluation.diagnosis import Finding

_INDENT = " " * 15


def print_diagnosis(name: str, found: Sequence[tuple[Finding, str, str]], too_little: str) -> None:
    """Print every finding with its evidence, its hit rate, and the commands that may mend and that confirm it."""
    if not found:
        console.write_wrapped(f"{'healthy':<13}  {too_little or 'no known fault is found in ' + one_line(name)}", _INDENT)
    for finding, mend, confirm in found:
        rate = f"right in {finding.right} of {finding.of} known cases" if finding.of else "not tried on known cases"
        console.write_wrapped(f"{finding.finding:<13}  {finding.evidence}; {rate}", _INDENT)
        console.write(f"  {'try':<12} {one_line(mend)}\n  {'confirm':<12} {one_line(confirm)}")
