"""Tables. A narrow terminal shows only the important columns; a pipe gets all of them, and nothing is cut."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from minigpt_cli.display import console
from minigpt_cli.display.terminal_chart import COLOURS, shortened
from minigpt_cli.escaping import csv_cell, latex, markdown_cell, one_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_GAP = 2  # between columns
_IMPORTANT = 2  # the highest rank of columns for which names are shortened
_LEAST_NAME = 16  # columns that a name keeps


@dataclass(frozen=True)
class Column:
    """A column. On a narrow terminal high ranks are dropped first; columns of rank 0 always stay."""

    name: str
    rank: int = 0
    right: bool = False
    most: int = 60  # characters on a terminal


R = TypeVar("R")
Fields = Sequence[tuple[Column, Callable[[R], str]]]
"""Columns, each with a function from a record to its cell."""

Form = Literal["table", "json", "csv", "markdown", "latex"]
"""The output format of rows."""


def cells_of(fields: Fields[R], records: Sequence[R]) -> tuple[list[Column], list[list[str]]]:
    """The columns, and a row of cells for each record."""
    return [column for column, _ in fields], [[show(record) for _, show in fields] for record in records]


PAIR = (f"color({COLOURS[0]})", f"color({COLOURS[1]})")  # of the two sides of a comparison, in the colours of their curves
Style = Literal["best", "dim", "bad", "a", "b", ""]
_STYLES = {
    "best": "bold green",
    "dim": "dim",
    "bad": "red",
    "a": PAIR[0],
    "b": PAIR[1],
    "": None,
}


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, styles: Sequence[Style] = (), title: str = "") -> None:
    """Print rows of plain text under `columns` to stdout, as many columns as fit. rich is too slow for a thousand rows."""
    from rich.cells import cell_len
    from rich.text import Text

    out = console.stdout()
    on_terminal = console.is_terminal(sys.stdout)
    cells = [[one_line(cell) for cell in row] for row in rows]
    if on_terminal:
        cells = [[shortened(cell, column.most) for cell, column in zip(row, columns, strict=True)] for row in cells]
    widths = [max([cell_len(column.name), *(cell_len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    if on_terminal:
        _shorten_names(columns, cells, widths, out.width)
    kept = _fitting(columns, cells, widths, out.width)

    def line(row: Sequence[str]) -> str:
        padded = []
        for i in kept:
            space = " " * (widths[i] - cell_len(row[i]))
            padded.append(space + row[i] if columns[i].right else row[i] + space)
        return (" " * _GAP).join(padded).rstrip()

    text = Text("\n" if on_terminal else "", no_wrap=True, overflow="ellipsis")
    if title:
        text.append(f"{one_line(title)}\n", "bold")
    text.append(line([column.name for column in columns]) + "\n", "bold")
    if on_terminal:
        text.append("─" * (sum(widths[i] + _GAP for i in kept) - _GAP) + "\n", "dim")
    for position, row in enumerate(cells):
        text.append(line(row) + "\n", _STYLES[styles[position]] if position < len(styles) else None)
    if on_terminal:
        out.print(text, end="")
    else:
        console.write(text.plain, end="")


def print_renderable(renderable: RenderableType) -> None:
    """Print to stdout; in a pipe without the spaces that rich adds at line ends."""
    out = console.stdout()
    if console.is_terminal(sys.stdout):
        out.print(renderable)
        return
    with out.capture() as captured:
        out.print(renderable)
    console.write("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_columns(texts: Sequence[tuple[str, Text]], details: Sequence[Text] = ()) -> None:
    """Print texts side by side under their names, with `details` of each below it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, expand=console.is_terminal(sys.stdout))
    for name, _ in texts:
        table.add_column(Text(one_line(name)), ratio=1)
    table.add_row(*(text for _, text in texts))
    if details:
        table.add_row(*details)
    print_renderable(table)


def _shorten_names(columns: Sequence[Column], cells: list[list[str]], widths: list[int], width: int) -> None:
    """Shorten the widest column of text in the middle before an important column is dropped, in `cells` and `widths`."""
    used = [i for i in range(len(columns)) if columns[i].rank == 0 or (columns[i].rank <= _IMPORTANT and any(row[i] for row in cells))]
    names = [i for i in used if not columns[i].right and widths[i] > _LEAST_NAME]
    too_wide = sum(widths[i] + _GAP for i in used) - _GAP - width
    if not names or too_wide <= 0:
        return
    widest = max(names, key=lambda i: widths[i])
    most, whole = max(_LEAST_NAME, widths[widest] - too_wide), [row[widest] for row in cells]
    while most < widths[widest] and len({shortened(cell, most) for cell in whole}) < len(set(whole)):
        most += 1  # so that shortened names stay different
    for row in cells:
        row[widest] = shortened(row[widest], most)
    widths[widest] = most


def _fitting(columns: Sequence[Column], cells: Sequence[Sequence[str]], widths: Sequence[int], width: int) -> list[int]:
    """The positions of the columns to show: the least important ones are dropped until the others fit in `width`."""
    kept = [i for i in range(len(columns)) if any(row[i] for row in cells) or columns[i].rank == 0]
    while sum(widths[i] + _GAP for i in kept) - _GAP > width and any(columns[i].rank for i in kept):
        kept.remove(max(kept, key=lambda i: (columns[i].rank, i)))
    return kept


def as_csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV with a header; missing values are empty, an interval is two cells, and any other list is one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    intervals = {i for i, name in enumerate(names) if name == "ci95"}
    head = [cell for i, name in enumerate(names) for cell in ((f"{name}_low", f"{name}_high") if i in intervals else (name,))]
    lines = [[cell for i, value in enumerate(row) for cell in ((value or ("", "")) if i in intervals else (value,))] for row in rows]
    writer.writerows([[csv_cell(flat(value)) for value in row] for row in (head, *lines)])
    return text.getvalue().rstrip("\n")


def flat(value: Any) -> Any:
    """A list as text with spaces between its items; any other value unchanged."""
    return " ".join(str(item) for item in value) if isinstance(value, list | tuple) else value


def as_markdown(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, aligned in the source too."""
    cells = [[markdown_cell(cell) for cell in row] for row in ([column.name for column in columns], *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    rule = ["-" * (width - 1) + ":" if column.right else "-" * width for column, width in zip(columns, widths, strict=True)]
    lines = [[c.rjust(w) if column.right else c.ljust(w) for c, w, column in zip(row, widths, columns, strict=True)] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def as_latex(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a LaTeX tabular with the lines of the package booktabs."""
    lines = [" & ".join(map(latex, row)) + r" \\" for row in ([column.name for column in columns], *rows)]
    kinds = "".join("r" if column.right else "l" for column in columns)
    parts = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts)


def print_settings(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Print section, setting, value and source of every setting; defaults are dim."""
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
        table.add_row(f"  {name}", one_line(value), one_line(source), style=None if source != "default" else "dim")
    print_renderable(table)
