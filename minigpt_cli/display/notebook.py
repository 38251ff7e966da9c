"""Results in a notebook: HTML fragments, which take their type and colours from the notebook around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minigpt_cli.display.pages.page import Markup, remark, table, tag
from minigpt_cli.display.tables import Column
from minigpt_cli.escaping import printable

_TINT_NATS = 6.0  # a character this surprising has the full colour
_SHOWN_CHARS = 5_000


def rows_html(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A table with a column for each key; numbers to the right."""
    if not rows:
        return remark("Nothing.")
    names = list(rows[0])
    columns = [Column(name, right=any(isinstance(row[name], int | float) for row in rows)) for name in names]
    return table(columns, [[_cell(row[name]) for name in names] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def surprise_html(text: str, nats: Sequence[float]) -> Markup:
    """`text` with every character tinted by its nats, (len(text),); a long one is cut."""
    shown = [
        tag("span", printable(character), style=f"background:rgba(214,112,32,{min(1.0, cost / _TINT_NATS):.2f})", title=f"{cost:.2f} nats")
        for character, cost in zip(text[:_SHOWN_CHARS], nats, strict=False)
    ]
    rest = [remark(f"… and {len(text) - _SHOWN_CHARS:,} more characters")] if len(text) > _SHOWN_CHARS else []
    return tag("div", tag("pre", *shown, style="white-space:pre-wrap"), *rest)
