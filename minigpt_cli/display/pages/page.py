"""Self-contained HTML pages: one template, one style sheet, one way to make a table or a tinted text, no address outside.

A page is a sequence of parts made by `tag` and the functions below it. They escape every text that is not Markup already, so no page
writes HTML by hand. Colours, phone width and the reader's light or dark theme are in style.css.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files

from minigpt_cli.display.tables import Column
from minigpt_cli.escaping import html


class Markup(str):
    """HTML that is finished; any other text is escaped where it is placed."""

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
    """A file that lies beside this one."""
    return Markup((files("minigpt_cli.display.pages") / name).read_text(encoding="utf-8"))


def section(title: str, *parts: str) -> Markup:
    """A part of the page under a heading; nothing where it has no content."""
    return tag("section", tag("h2", title), *parts) if any(parts) else Markup()


def remark(text: str) -> Markup:
    """A line of less weight."""
    return tag("p", text, class_="dim")


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], best: int | None = None) -> Markup:
    """A table that scrolls by itself where it is too wide; columns in which every row is empty are left out, row `best` stands out."""
    if not rows:
        return Markup()
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]

    def line(kind: str, cells: Sequence[str], css: str = "") -> Markup:
        shown = (tag(kind, cells[i], class_="right" if columns[i].right else "") for i in used)
        return tag("tr", *shown, class_=css)

    body = (line("td", row, "best" if n == best else "") for n, row in enumerate(rows))
    return tag("div", tag("table", tag("thead", line("th", [column.name for column in columns])), tag("tbody", *body)), class_="wide")


def differences_table(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    """What differs between runs: a row for each setting, a column for each run."""
    return table([Column(""), *map(Column, names)], [[name, *values] for name, values in rows]) or remark("Nothing.")


def tinted(text: str, strength: float, colour: int = 1, about: str = "") -> Markup:
    """Text on a ground of one of the chart colours, from 0 (none) to 1 (full); `about` is shown when it is pointed at."""
    return tag("span", text, class_="tint", style=f"--t:{min(1.0, strength):.2f};--of:var(--c{colour})", title=about)


def in_columns(parts: Iterable[Markup]) -> Markup:
    """Parts beside each other; below each other on a phone."""
    return tag("div", *parts, class_="columns")


def side_by_side(texts: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    """Texts in columns, each a name and its pieces."""
    return in_columns(tag("div", remark(name), tag("pre", *pieces)) for name, pieces in texts)
