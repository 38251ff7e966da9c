"""What became of every tensor of an import: the counts, and each one that did not simply fit."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt_cli.display import console
from minigpt_cli.display.tables import Column, print_table

_ROWS = 40  # of those that did not fit; --json has all


def print_tensor_report(
    loaded: int,
    missing: Sequence[tuple[str, str]],
    unexpected: Sequence[tuple[str, str]],
    misshaped: Sequence[tuple[str, str, str]],
    notes: Sequence[str],
) -> None:
    """Print notes to stderr, and the table to stdout."""
    for note in notes:
        console.notice(note)
    rows = [["wrongly shaped", name, theirs, ours] for name, theirs, ours in misshaped]
    rows += [["missing", name, "", shape] for name, shape in missing] + [["unexpected", name, shape, ""] for name, shape in unexpected]
    columns = [Column("what"), Column("tensor"), Column("theirs", 1), Column("ours", 1)]
    if rows:
        print_table(columns, rows[:_ROWS], styles=["bad"] * min(len(rows), _ROWS))
        if len(rows) > _ROWS:
            console.notice(f"and {len(rows) - _ROWS} more; --json lists them all")
    counts = {"loaded": loaded, "missing": len(missing), "unexpected": len(unexpected), "wrongly shaped": len(misshaped)}
    console.write(", ".join(f"{number} {what}" for what, number in counts.items()))
