"""Self-contained HTML pages: no script, no font, no address outside them; they follow the reader's light or dark theme."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt_cli.escaping import html

# Colours after Okabe and Ito, told apart by colour-blind people; in each theme dark or light enough to read.
STYLE = """
:root { --paper: #ffffff; --ink: #1b1b1b; --dim: #5f6368; --rule: #d9d9d9;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #aa4a86; --c4: #8a6a00; --c5: #2a84b8; --c6: #666666 }
@media (prefers-color-scheme: dark) { :root { --paper: #16181d; --ink: #e8e8e8; --dim: #a0a4ab; --rule: #3a3d45;
  --c0: #56b4e9; --c1: #ee8a3c; --c2: #2fc59b; --c3: #e09cc3; --c4: #f0e442; --c5: #8fcbf0; --c6: #bbbbbb } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem } .dim { color: var(--dim) } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { padding: .25rem .9rem .25rem 0; text-align: left }
th { border-bottom: 1px solid var(--rule); font-weight: 600 } .right { text-align: right } .best { font-weight: 600 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.6 ui-monospace, monospace; margin: .4rem 0 }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font: 13px system-ui, sans-serif } svg .axis { stroke: var(--rule) }
td.share { background: color-mix(in srgb, var(--c0) calc(var(--s) * 60%), transparent) }
"""


def html_page(title: str, parts: Sequence[str], style: str = STYLE) -> str:
    """A whole page of `parts`, which are HTML already."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html(title)}</title><style>{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{html(title)}</h1>{"".join(parts)}</body></html>\n'


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] = (), best: int | None = None) -> str:
    """A table of plain texts; columns in which every row is empty are left out, row `best` stands out."""
    used = [i for i in range(len(names)) if any(row[i] for row in rows)]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f'<{tag} class="{"right" if i < len(right) and right[i] else ""}">{html(cells[i])}</{tag}>' for i in used)

    body = "".join(f'<tr class="{"best" if n == best else ""}">{line("td", row)}</tr>' for n, row in enumerate(rows))
    return f'<div class="wide"><table><thead><tr>{line("th", names)}</tr></thead><tbody>{body}</tbody></table></div>'
