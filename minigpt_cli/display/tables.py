"""Tables of records: settings, runs, the leaderboard."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt_cli.display import console


def print_settings(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Print section, setting, value and source of every setting; what is not a default stands out."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("setting", "value", "from"):
        table.add_column(name, overflow="fold")
    section = ""
    for group, name, value, source in rows:
        if group != section:
            table.add_section()
            table.add_row(group, style="bold")
            section = group
        table.add_row(f"  {name}", console.one_line(value), console.one_line(source), style=None if source != "default" else "dim")
    console.stdout().print(table)
