"""Self-contained HTML pages: one template, one style sheet, one function for tables and one for tinted text, no external address.

A page is a sequence of parts made by `tag` and the functions below it. They escape every text that is not Markup, so no page
writes HTML by hand. Colours, phone width and light or dark theme are in style.css.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

from minigpt_cli.display.tables import Column
from minigpt_cli.escaping import html

_SHORT = 20  # characters of a cell that stays on one line
_IMPORTANT = 3  # the highest rank of columns that a phone shows
COLOURS = 7  # of curves: --c0 to --c6 of style.css


class Markup(str):
    """Finished HTML. Other text is escaped when it is inserted."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: str) -> Markup:
    """An element. Content that is not Markup is escaped, and so is every attribute; `class_` is class, `text_anchor` is text-anchor."""
    shown = "".join(f' {key.strip("_").replace("_", "-")}="{html(value)}"' for key, value in attributes.items() if value)
    return Markup(f"<{name}{shown}>{_joined(content)}</{name}>")


def _joined(content: Sequence[str]) -> str:
    return "".join(part if isinstance(part, Markup) else html(part) for part in content)


def html_page(title: str, parts: Sequence[Markup], *, head: str = "", script: str = "", data: object = None) -> str:
    """A whole page: its title, its parts, and a script with the `data` that it shows."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{tag("title", title)}{head}'
    body = [tag("h1", title), *parts]
    if data is not None:
        # "</script>" or "<!--" inside a string would end the script or hide its end: no "<" is left.
        document = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
        body.append(Markup(f'<script type="application/json" id="data">{document}</script>'))
    if script:
        body.append(Markup(f"<script>{script}</script>"))
    return f'<!doctype html><html lang="en"><head>{head}<style>{asset("style.css")}</style></head><body>{_joined(body)}</body></html>\n'


def asset(name: str) -> Markup:
    """The content of a file of this folder."""
    return Markup((files("minigpt_cli.display.pages") / name).read_text(encoding="utf-8"))


def theme_colours(*, dark: bool) -> dict[str, str]:
    """The colours of style.css by name, for pictures that are no pages."""
    light_theme, dark_theme = re.findall(r":root \{(.*?)\}", asset("style.css"), re.DOTALL)
    return dict(re.findall(r"--(\w+): (#\w{6})", dark_theme if dark else light_theme))


def section(title: str, *parts: str) -> Markup:
    """A part of the page with a heading; empty if it has no content."""
    return tag("section", tag("h2", title), *parts) if any(parts) else Markup()


def remark(text: str) -> Markup:
    """A dim line of text."""
    return tag("p", text, class_="dim")


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], best: int | None = None) -> Markup:
    """A table that scrolls if it is too wide, without empty columns and on a phone without unimportant ones; row `best` is highlighted."""
    if not rows:
        return Markup()
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]

    def line(kind: str, cells: Sequence[str], css: str = "") -> Markup:
        return tag("tr", *(tag(kind, cells[i], class_=_classes(columns[i], cells[i])) for i in used), class_=css)

    body = (line("td", row, "best" if n == best else "") for n, row in enumerate(rows))
    return tag("div", tag("table", tag("thead", line("th", [column.name for column in columns])), tag("tbody", *body)), class_="wide")


def _classes(column: Column, cell: str) -> str:
    side = "right" if column.right else "short" if len(cell) <= _SHORT else ""
    return f"{side} extra".strip() if column.rank > _IMPORTANT else side


def differences_table(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    """What differs between runs: a row for each setting, a column for each run."""
    return table([Column(""), *map(Column, names)], [[name, *values] for name, values in rows]) or remark("Nothing.")


def tinted(text: str, strength: float, colour: int = 1, about: str = "") -> Markup:
    """Text with one of the chart colours as background, from 0 (none) to 1 (full); `about` is its tooltip."""
    return tag("span", text, class_="tint", style=f"--t:{min(1.0, strength):.2f};--of:var(--c{colour})", title=about)


def in_columns(parts: Iterable[Markup]) -> Markup:
    """Parts side by side; one below another on a phone."""
    return tag("div", *parts, class_="columns")


def side_by_side(texts: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    """Texts in columns; each has a name and its pieces."""
    return in_columns(tag("div", remark(name), tag("pre", *pieces)) for name, pieces in texts)
