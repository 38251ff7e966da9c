"""A page with a text whose characters are tinted by how surprising they were for a run, and what it expected instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt_cli.data.chat import END
from minigpt_cli.display import format
from minigpt_cli.display.generation import expectation
from minigpt_cli.display.pages.page import Markup, asset, html_page, in_columns, remark, section, tag, tinted
from minigpt_cli.escaping import one_line, printable
from minigpt_cli.tokenization.contract import END_OF_TEXT

if TYPE_CHECKING:
    from minigpt_cli.evaluation.evaluate_run import Evaluation
    from minigpt_cli.evaluation.surprise import Cell, Surprise, Surprising

_STRONG = 6.9  # nats per character: this and more gets full colour, as a probability of 1/1000 does in tokens.js


def surprise_page(found: Evaluation, what: str, surprising: Surprise) -> str:
    """The page of a scored text: its score, its most surprising passages, and its beginning, character by character."""
    score, run = found.score, one_line(found.run.name)
    shown = sum(len(cell.text) for cell in surprising.beginning if cell.token)
    all_of_it = "" if shown >= score.n_chars else f"The first {shown:,} of {score.n_chars:,} characters; the rest is left out. "
    data = {"prompt": "", "unit": "nats per character", "tokens": [_token(cell) for cell in surprising.beginning]}
    parts = [
        tag("p", f"{score.nats_per_char:.4f} ", tag("span", "nats per character"), class_="score"),
        remark(f"{one_line(what)}: {score.n_chars:,} characters; 95 %: {format.interval(score.ci95)}"),
        remark(f"{run}, {format.checkpoint(found.ckpt, found.step)}"),
        tag("p", id="legend"),
        section("Most surprising passages", in_columns(map(_passage, surprising.passages)) if surprising.passages else ""),
        section(
            "The text",
            remark(f"{all_of_it}Point at a character, or use the arrow keys, to see what the model expected there."),
            tag("pre", class_="text long", id="text", tabindex="0", aria_label="The text; arrow keys go from character to character"),
            tag("table", tag("tbody", id="alternatives"), class_="alternatives", aria_live="polite"),
        ),
    ]
    return html_page(f"What surprised {run}?", parts, script=asset("tokens.js") + asset("saved_view.js"), data=data)


def _token(cell: Cell) -> object:
    """A cell as saved_view.js shows it; text that is not scored as it is."""
    if not cell.token:
        return printable(cell.text.replace(END_OF_TEXT, "■\n").replace(END, f"{END}\n"))
    expected = [[printable(name), round(p, 4)] for name, p in cell.expected]
    return [printable(cell.token), round(cell.probability, 4), expected, printable(cell.text), round(_strength(cell), 3)]


def _strength(cell: Cell) -> float:
    return min(1.0, cell.nats_per_char / _STRONG)


def _passage(passage: Surprising) -> Markup:
    """A passage with its place, its score, and what was expected in its most surprising place."""
    about = f"{passage.place}, {passage.nats_per_char:.2f} nats per character"
    pieces = [tinted(printable(cell.text), _strength(cell), about=f"{cell.nats:.2f} nats") for cell in passage.cells]
    return tag(
        "div", remark(about), tag("pre", *pieces), remark(expectation(passage.peak.token, passage.peak.probability, passage.peak.expected))
    )
