"""What `runs look` measured, on the terminal: parts, context, kinds of characters, and guesses layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt_cli.display import console, format
from minigpt_cli.display.tables import Column, Style, print_table
from minigpt_cli.escaping import one_line, printable
from minigpt_cli.tokenization.contract import END_OF_TEXT

if TYPE_CHECKING:
    from minigpt_cli.evaluation.inside import ContextLoss, Inside, KindLoss, LayerExperts, PartCost
    from minigpt_cli.evaluation.logit_lens import Lens
    from minigpt_cli.runstore.directory import Run
    from minigpt_cli.runstore.records import RunRecord

_BAR = 16  # characters
_ROWS = 40  # parts that are shown; --json has all
_NO_EFFECT, _HARM = "no measurable effect", "better without it"
_WHAT = {
    "itself": "itself",
    "previous": "the {} before",
    "one before previous": "two {}s before",
    "same earlier": "the same {} earlier",
    "induction": "what followed it last time (induction)",
    "space": "spaces",
    "next": "the next {}, which is the answer",
    "line start": "starts of lines",
    "first": "the first {}",
}


def print_inside(run: Run, text: str, found: Inside) -> None:
    """Print everything that was measured."""
    corpus = run.record.corpus
    ends = "; without the ends of documents" if corpus is not None and corpus.n_documents > 1 else ""
    lines = [
        f"run     {one_line(run.name)}, {one_line(run.record.arch)}, {_checkpoint(run)}",
        f"text    the first {found.n_chars:,} characters of the {one_line(text)}",
        f"score   {found.nats_per_char:.4f} nats per character (95 %: {format.interval(found.ci95)}){ends}",
    ]
    for line in lines:
        console.write_wrapped(line, " " * 8)
    if found.parts:
        _print_parts(found.parts, unit_of(run.record))
    _print_context(found.context)
    _print_losses("where it is surprised", "kind", found.kinds)
    _print_losses("by tokens before it in the window", "tokens", found.positions)
    for layer in found.experts:
        _print_experts(layer)
    _print_remarks(found)


def _checkpoint(run: Run) -> str:
    which = run.checkpoint or "best"
    return f"checkpoint of step {int(which):,}" if which.isdecimal() else f"{which} checkpoint"


def unit_of(record: RunRecord) -> str:
    """What the model reads one by one."""
    return "character" if record.tokenizer == "char" else "token"


def role_in_words(role: str, unit: str) -> str:
    """What a head with this role looks at; the model reads `unit`s."""
    return _WHAT.get(role, role).format(unit)


def _print_parts(parts: Sequence[PartCost], unit: str) -> None:
    """Print a row for each part, layer by layer: what it costs to take it out, and the roles of heads. The model reads `unit`s."""
    shown, left_out = parts, 0
    if len(parts) > _ROWS:
        shown = sorted(parts, key=lambda part: -abs(part.delta_nats_per_char))[:_ROWS]
        left_out = len(parts) - _ROWS
    most = max(max(part.delta_nats_per_char for part in shown), 1e-9)
    rows: list[list[str]] = []
    styles: list[Style] = []
    for part in sorted(shown, key=_place):
        delta = part.delta_nats_per_char
        roles = ", ".join(f"{role_in_words(role, unit)} {share:.0%}" for role, share in part.roles.items())
        half = f"±{(part.ci95[1] - part.ci95[0]) / 2:.4f}"
        bar = format.bar(delta / most, _BAR) if part.measurable and delta > 0 else ""
        effect = _NO_EFFECT if not part.measurable else _HARM if delta < 0 else ""
        rows.append([_name(part.part), f"{delta:+.4f}", half, bar, "; ".join(filter(None, [effect, roles]))])
        styles.append("" if part.measurable else "dim")
    columns = [Column("part"), Column("nats", right=True), Column("95 %", 1, right=True), Column("", 3), Column("looks at", most=70)]
    _print_section("what each part is worth: nats per character without it minus with it", columns, rows, styles)
    if left_out:
        console.notice(f"and {left_out} parts of less effect; --json lists them all")


def _place(part: PartCost) -> tuple[float, int, str]:
    """Layers in order, each before its heads and its feed-forward; positions first."""
    kind, _, where = part.part.partition(" ")
    if not where:
        return (-1.0, 0, "")
    layer, _, head = where.partition(".")
    return (float(layer), ["layer", "head", "mlp"].index(kind), head.rjust(4))


def _name(part: str) -> str:
    return f"· {part}" if part.startswith(("head", "mlp")) else part


def _print_context(context: Sequence[ContextLoss]) -> None:
    if not context:
        return
    most = max(each.nats_per_char for each in context)
    rows = [[f"{c.tokens:,}", *_loss_cells(c.nats_per_char, c.ci95, most)] for c in context]
    _print_section("the same characters, predicted from so many tokens before them", [Column("tokens", right=True), *_LOSS_COLUMNS], rows)
    enough = next(each.tokens for each in context if not each.short)
    if enough == context[-1].tokens:
        console.write_wrapped(f"it uses its whole window: fewer than {enough:,} tokens are measurably worse")
    else:
        console.write_wrapped(f"{enough:,} token{'s are' if enough > 1 else ' is'} enough: more bring no measurable improvement")


_LOSS_COLUMNS = (Column("nats/char", right=True), Column("95 %", 1, right=True), Column("", 3))


def _loss_cells(nats: float, ci95: tuple[float, float], most: float) -> list[str]:
    return [f"{nats:.4f}", format.plus_minus(nats, ci95), format.bar(nats / (most or 1.0), _BAR)]


def _print_losses(title: str, name: str, losses: Sequence[KindLoss]) -> None:
    most = max(each.nats_per_char for each in losses)
    rows = [[k.kind, f"{k.share:.1%}", f"{k.share_of_loss:.1%}", *_loss_cells(k.nats_per_char, k.ci95, most)] for k in losses]
    _print_section(title, [Column(name), Column("of text", 2, right=True), Column("of loss", 1, right=True), *_LOSS_COLUMNS], rows)


def _print_section(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], styles: Sequence[Style] = ()) -> None:
    if not console.is_terminal(sys.stdout):
        console.write("")  # as on a terminal
    print_table(columns, rows, styles=styles, title=title)


def _print_experts(found: LayerExperts) -> None:
    """Print how the characters of each kind are shared among the experts of a layer."""
    columns = [Column("kind"), *(Column(f"expert {i}", min(9, i), right=True) for i in range(len(found.shares)))]
    rows = [["all", *(f"{share:.0%}" for share in found.shares)]]
    rows += [[kind, *(f"{share:.0%}" for share in shares)] for kind, shares in found.by_kind.items()]
    title = f"experts of layer {found.layer}: who serves which characters (a kind tells {found.information:.3f} nats about the expert)"
    _print_section(title, columns, rows)


def _print_remarks(found: Inside) -> None:
    lines: list[str] = []
    if found.copying is not None:
        first, second = found.copying.first, found.copying.second
        lines.append(f"random strings cost {first:.2f} nats per token, and {second:.2f} when they are repeated at once")
    if found.dropout is not None:
        on = ", ".join(f"{nats:.4f}" for nats in found.dropout.on)
        off = ", ".join(dict.fromkeys(f"{nats:.4f}" for nats in found.dropout.off))
        lines.append(f"the same text read five times: with dropout {on} nats per token; without it {off} each time")
    if lines:
        console.write("")
    for line in lines:
        console.write_wrapped(line)


def print_lens(lens: Lens) -> None:
    """Print a text with what was expected in the place of each token, a line for each layer; a right guess stands out."""
    from rich.cells import cell_len
    from rich.text import Text

    out, on_terminal = console.stdout(), console.is_terminal(sys.stdout)
    shown = [_visible(token) for token in lens.tokens]
    guesses = [[_visible(token) for token, _ in stage] for stage in lens.guesses]
    nats = ["" if n is None else f"{min(9, round(n))}" for n in lens.nats]
    widths = [
        max(cell_len(cell) for cell in (shown[i], nats[i], *((stage[i - 1] for stage in guesses) if i else ()))) for i in range(len(shown))
    ]
    label = max(len(stage) for stage in lens.stages) + 2
    console.write("")
    console.write_wrapped("what it expected in the place of each token, layer by layer; nats are what the token cost")
    console.write_wrapped("(each layer is read with the eyes of the last, so the guesses of the first ones may look odd)")
    for start, end in _lines(widths, (out.width if on_terminal else 100) - label):
        rows = [("text", shown), *((stage, ["", *row]) for stage, row in zip(lens.stages, guesses, strict=True)), ("nats", nats)]
        for name, cells in rows:
            line = Text(f"{name:<{label}}", no_wrap=True, style="bold" if name in ("text", "nats") else "")
            for i in range(start, end):
                right = name in lens.stages and cells[i] == shown[i]
                style = "bold green" if right else "dim" if name in lens.stages else ""
                line.append(cells[i] + " " * (widths[i] - cell_len(cells[i])), style)
            if on_terminal:
                out.print(line)
            else:
                console.write(line.plain.rstrip())
        console.write("")


def _visible(token: str) -> str:
    return printable(token.replace(END_OF_TEXT, "■").replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥"), keep="") or "□"


def _lines(widths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Ranges of tokens that fit in one line each."""
    ranges, start, used = [], 0, 0
    for i, each in enumerate(widths):
        if used + each > max(width, each) and i > start:
            ranges.append((start, i))
            start, used = i, 0
        used += each
    return [*ranges, (start, len(widths))]
