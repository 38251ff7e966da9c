"""A comparison as one self-contained HTML page: no script, no font, no address outside it; it follows the reader's light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minigpt_cli.display import format
from minigpt_cli.display.charts import Curve
from minigpt_cli.display.comparison import SCORE_COLUMNS, outlook_sentence, scope_lines, score_rows, verdict_sentence
from minigpt_cli.display.svg import line_chart
from minigpt_cli.escaping import html

if TYPE_CHECKING:
    from minigpt_cli.evaluation.comparison import Pair, Part, Passage, Side

_STYLE = """
:root { --paper: #ffffff; --ink: #1b1b1b; --dim: #5f6368; --rule: #d9d9d9; --a: #0072b2; --b: #d55e00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #aa4a86; --c4: #8a6a00; --c5: #2a84b8; --c6: #666666 }
@media (prefers-color-scheme: dark) { :root { --paper: #16181d; --ink: #e8e8e8; --dim: #a0a4ab; --rule: #3a3d45; --a: #56b4e9; --b: #ee8a3c;
  --c0: #56b4e9; --c1: #ee8a3c; --c2: #2fc59b; --c3: #e09cc3; --c4: #f0e442; --c5: #8fcbf0; --c6: #bbbbbb } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { padding: .25rem .9rem .25rem 0; text-align: left }
th { border-bottom: 1px solid var(--rule); font-weight: 600 } td.right, th.right { text-align: right } .dim { color: var(--dim) }
.wide { overflow-x: auto } .verdict { font-size: 1.05rem; margin: .3rem 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.6 ui-monospace, monospace; margin: .4rem 0 }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; border-top: 1px solid var(--rule); padding-top: .4rem }
.a span { background: color-mix(in srgb, var(--a) calc(var(--d) * 70%), transparent) }
.b span { background: color-mix(in srgb, var(--b) calc(var(--d) * 70%), transparent) }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font: 13px system-ui, sans-serif } svg .axis { stroke: var(--rule) }
"""
_STRONG = 1.5  # nats: a difference of this size gets the full colour


@dataclass(frozen=True)
class PageContent:
    """What the page shows."""

    text: str  # which text was scored
    sides: Sequence[Side]
    extra: Sequence[tuple[int, float]]  # parameters and seconds of each side
    pairs: Sequence[Pair]
    differences: Sequence[tuple[str, Sequence[str]]]  # settings that differ, a value for each side
    kinds: Sequence[Part]
    positions: Sequence[Part]
    passages: Sequence[Passage]  # of the first two sides
    curves: Sequence[Curve]
    x_label: str
    prompt: str = ""
    samples: Sequence[tuple[str, str]] = field(default_factory=list)


def comparison_page(content: PageContent) -> str:
    """The page."""
    names = [side.name for side in content.sides]
    title = " against ".join(names)
    parts = [
        f"<h1>{html(title)}</h1>",
        f'<p class="dim">{html(content.text)}</p>',
        "<h2>Verdict, nats per character</h2>",
        *_verdicts(content.pairs),
        "<h2>Scores</h2>",
        _table([column.name for column in SCORE_COLUMNS], score_rows(content.sides, content.extra)),
        "<h2>What differs in the configuration</h2>",
        _table(["", *names], [[name, *values] for name, values in content.differences]) if content.differences else "<p>Nothing.</p>",
        _chart(content),
        "<h2>By kind of character</h2>",
        _table(["", "share", *names], _part_rows(content.kinds)),
        "<h2>By position in the window</h2>",
        _table(["tokens before", "share", *names], _part_rows(content.positions)),
        *_passages(names, content.passages),
        *_samples(content.prompt, content.samples),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _chart(content: PageContent) -> str:
    chart = line_chart(content.curves, x_label=content.x_label, y_label="nats per character")
    return f"<h2>Validation loss</h2>{chart}" if chart else ""


def _verdicts(pairs: Sequence[Pair]) -> list[str]:
    lines = []
    for pair in pairs:
        further = outlook_sentence(pair.outlook) if pair.outlook else ""
        lines.append(f'<p class="verdict"><strong>{html(verdict_sentence(pair))}</strong></p>')
        lines += [f"<p>{html(further)}</p>"] if further else []
    return lines + [f'<p class="dim">{html(line)}</p>' for line in scope_lines(pairs)]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    used = [i for i in range(len(names)) if i == 0 or any(row[i] for row in rows)]
    head = "".join(f'<th class="{"right" if i else ""}">{html(names[i])}</th>' for i in used)
    lines = ["".join(f'<td class="{"right" if i else ""}">{html(row[i])}</td>' for i in used) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _part_rows(parts: Sequence[Part]) -> list[list[str]]:
    return [[p.name, f"{p.share:.1%}", *(format.loss(None if math.isnan(v) else v) for v in p.nats_per_char)] for p in parts]


def _passages(names: Sequence[str], passages: Sequence[Passage]) -> list[str]:
    if not passages:
        return []
    out = ["<h2>Most different passages</h2>", '<p class="dim">Coloured where that side spends fewer nats, the stronger the more.</p>']
    for passage in passages:
        better = names[0] if passage.delta < 0 else names[1]
        about = f"{better} is better by {abs(passage.delta):.3f} nats per character, from character {passage.start:,}"
        sides = [
            f'<div class="{css}"><div class="dim">{html(name)}</div><pre>{_coloured(passage, sign)}</pre></div>'
            for name, css, sign in zip(names, "ab", (-1, 1), strict=False)
        ]
        out.append(f'<p class="dim">{html(about)}</p><div class="pair">{"".join(sides)}</div>')
    return out


def _coloured(passage: Passage, sign: int) -> str:
    pieces = []
    for character, difference in zip(passage.text, passage.differences.tolist(), strict=True):
        strength = min(1.0, max(0.0, sign * difference) / _STRONG)
        shown = html(character)
        pieces.append(f'<span style="--d:{strength:.2f}" title="{-abs(difference):.2f} nats">{shown}</span>' if strength >= 0.1 else shown)
    return "".join(pieces)


def _samples(prompt: str, samples: Sequence[tuple[str, str]]) -> list[str]:
    if not samples:
        return []
    shown = [
        f'<div><div class="dim">{html(name)}</div><pre><span class="dim">{html(prompt)}</span>{html(text)}</pre></div>'
        for name, text in samples
    ]
    return ["<h2>From one prompt and seed</h2>", f'<div class="pair">{"".join(shown)}</div>']
