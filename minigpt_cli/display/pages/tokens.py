"""Texts token by token: a page with the probabilities of one text, and the page of the server. Both use tokens.js."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt_cli.display.generation import ShownToken
from minigpt_cli.display.pages.page import Markup, asset, html_page, remark, tag
from minigpt_cli.escaping import one_line, printable

_HINT = "Point at a token, or use the arrow keys, to see which other tokens were probable."


def probabilities_page(run: str, prompt: str, tokens: Sequence[ShownToken], facts: str) -> str:
    """The page of one text; a token shows its alternatives when it is pointed at or focused."""
    data = {
        "prompt": printable(prompt),
        "tokens": [
            [printable(t.name), round(t.probability, 4), [[printable(name), round(p, 4)] for name, p in t.alternatives]] for t in tokens
        ],
    }
    parts = [
        remark(one_line(facts)),
        tag("pre", class_="text", id="text", tabindex="0", aria_label="The text; arrow keys go from token to token"),
        tag("p", id="legend"),
        remark(_HINT),
        tag("table", tag("tbody", id="alternatives"), class_="alternatives", aria_live="polite"),
    ]
    return html_page(f"How sure was {one_line(run)}?", parts, script=asset("tokens.js") + asset("saved_view.js"), data=data)


def serve_page() -> str:
    """The page of the server: two runs side by side."""
    icon = Markup('<link rel="icon" href="data:,">')  # empty, so that no browser requests one
    return html_page("minigpt: two runs, one prompt", [asset("serve.html")], head=icon, script=asset("tokens.js") + asset("serve.js"))
