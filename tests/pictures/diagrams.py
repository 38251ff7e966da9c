"""Draw the two diagrams of docs/learning.md: python tests/pictures/diagrams.py

Shapes and sizes are those that a model of the default settings has, recorded in a forward pass. A test draws again and compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from minigpt_cli.config import ModernConfig, OptimConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.models.plain import opened

HERE = Path(__file__).parent
CHARACTERS, TOKENS = 1_115_394, 65  # of Tiny Shakespeare, and its distinct ones
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.dim { fill: #59636e } .shape { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; fill: #0550ae }
.name { font-weight: 600 } .middle { text-anchor: middle } .end { text-anchor: end }
.page { fill: #ffffff; stroke: #d1d9e0 } .box { fill: #f6f8fa; stroke: #818b98 }
.frame { fill: none; stroke: #818b98; stroke-dasharray: 5 4 }
.line { fill: none; stroke: #59636e; stroke-width: 1.5; marker-end: url(#tip) } .stream { fill: none; stroke: #bc4c00; stroke-width: 4 }
.plus { fill: #ffffff; stroke: #bc4c00; stroke-width: 2.5 } .tip { fill: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .dim { fill: #9198a1 } .shape { fill: #79c0ff } .page { fill: #0d1117; stroke: #3d444d }
  .box { fill: #151b23; stroke: #656c76 } .frame { stroke: #656c76 } .line { stroke: #9198a1 } .stream { stroke: #f0883e }
  .plus { fill: #0d1117; stroke: #f0883e } .tip { fill: #9198a1 }
}
""".strip()
TIP = """
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>
""".strip()


def text(x: float, y: float, words: str, css: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{css}">{escape(words)}</text>'


def box(x: float, y: float, width: float, name: str, *lines: str) -> str:
    """A box with a name and lines below it; a line that begins with a bracket or a figure is a shape."""
    rows = [text(x + 12, y + 21, name, "name")]
    rows += [text(x + 12, y + 21 + 19 * (i + 1), words, "shape" if words[0] in "(0123456789" else "dim") for i, words in enumerate(lines)]
    return f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{32 + 19 * len(lines):g}" rx="6"/>' + "".join(rows)


def line(*points: tuple[float, float], css: str = "line") -> str:
    return f'<path class="{css}" d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


def note(x: float, y: float, name: str, *lines: str) -> str:
    """A name and lines below it."""
    return text(x, y, name, "name") + "".join(text(x, y + 19 * (i + 1), words, "dim") for i, words in enumerate(lines))


def plus(x: float, y: float) -> str:
    return f'<circle class="plus" cx="{x:g}" cy="{y:g}" r="12"/>' + text(x, y + 5, "+", "middle name")


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    page = f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", f"<defs>{TIP}</defs>", page, *parts, "</svg>", ""]
    )


def shapes() -> dict[str, str]:
    """The shape of every value that a forward pass of the default model computes."""
    config = ModernConfig()
    model, watched = build_model(config, TOKENS, seed=1), {}
    ids = torch.zeros(OptimConfig().batch_size, config.block_size, dtype=torch.long)
    with torch.no_grad(), opened(model, watch=watched):
        logits = model(ids).logits
    found = {"ids": ids, "logits": logits, **watched}
    return {name: f"({', '.join(map(str, value.shape))})" for name, value in found.items()}


def model_diagram() -> str:
    """From ids to logits: the residual stream from top to bottom, and what each block adds to it."""
    c, at = ModernConfig(), shapes()
    D, stream, side = c.n_embd // c.n_head, 60, 150
    wide = 400
    parts = [
        text(28, 36, "token ids", "name"), text(110, 36, at["ids"], "shape"),
        text(270, 36, "B = 16 windows, T = 128 tokens each", "dim"),
        line((stream, 44), (stream, 62)),
        box(28, 64, 522, "embedding", f"{TOKENS} × {c.n_embd}: a row of numbers for each token of the vocabulary"),
        line((stream, 115), (stream, 669), css="stream"),
        text(stream + 16, 138, f"residual stream {at['stream.0.before']}", "shape"),
        '<rect class="frame" x="16" y="152" width="684" height="468" rx="8"/>',
        text(688, 174, f"block, {c.n_layer} times", "end name"),
        box(side, 186, wide, "norm (RMSNorm)"),
        box(side, 236, wide, "q, k, v", f"{at['0.q']} each: {c.n_head} heads of {D}", "q and k are turned by their position (RoPE)"),
        box(side, 325, wide, "weights = softmax(q · k / √D), future hidden", at["0.weights"]),
        box(side, 394, wide, "weights × v, heads side by side, out", at["0.attention_out"]),
        note(side + wide + 14, 284, "attention", "tokens exchange", "what they know"),
        box(side, 494, wide, "norm (RMSNorm)"),
        box(side, 544, wide, "SwiGLU", f"{c.n_embd} → 2 × {c.hidden} → {c.hidden} → {c.n_embd}"),
        note(side + wide + 14, 548, "MLP", "each token", "by itself"),
        *(line((side + 200, top), (side + 200, bottom)) for top, bottom in ((218, 235), (307, 324), (376, 393), (526, 543))),
        line((stream, 202), (side - 2, 202)), line((side, 420), (stream + 14, 420)), plus(stream, 420),
        line((stream, 510), (side - 2, 510)), line((side, 570), (stream + 14, 570)), plus(stream, 570),
        box(28, 670, 522, "norm, then head", f"{c.n_embd} × {TOKENS}: a logit for each token of the vocabulary"),
        line((stream, 721), (stream, 742)),
        text(28, 762, "logits", "name"), text(110, 762, at["logits"], "shape"),
        text(270, 762, "softmax makes probabilities of the next token", "dim"),
    ]  # fmt: skip
    return picture(716, 784, "The model of the default settings, with the shape of each value", parts)


def training_diagram() -> str:
    """From text to weights, and from a prompt to text."""
    c, at = ModernConfig(), shapes()
    train = int(0.9 * CHARACTERS)
    wide, gap = 190, 28
    xs = [24 + i * (wide + gap) for i in range(4)]

    def row(y: float, *boxes: tuple[str, ...]) -> list[str]:
        return [box(x, y, wide, *words) for x, words in zip(xs, boxes, strict=False)]

    def arrows(y: float, count: int) -> list[str]:
        return [line((x + wide, y), (x + wide + gap - 2, y)) for x in xs[:count]]

    parts = [
        text(24, 34, "From text to batches", "name"),
        *row(48, ("text", f"{CHARACTERS:,} characters", "in documents"),
             ("splits", f"{train:,} train", f"{CHARACTERS - train:,} validation"),
             ("tokenizer", '"To be"', "32 53 1 40 43"), ("windows", f"{c.block_size + 1} ids each,", "in random order")),
        *arrows(83, 3),
        line((xs[3] + 95, 118), (xs[3] + 95, 140), (xs[0] + 165, 140), (xs[0] + 165, 188)),
        text(24, 176, "A training step", "name"),
        *row(190, ("batch x, y", f"{at['ids']}", "y is x, one token later"), ("model", "the other drawing", at["logits"]),
             ("loss", "mean of −ln p(y)", "in nats per token"), ("gradients", "of the loss, for", "every weight")),
        *arrows(225, 3),
        line((xs[3] + 95, 260), (xs[3] + 95, 290)), box(xs[3], 292, wide, "optimizer", "Muon and AdamW", "move each weight"),
        line((xs[3], 327), (xs[1] + 95, 327), (xs[1] + 95, 262)),
        text(xs[1] + 107, 318, "new weights, next batch", "dim"),
        text(24, 376, "Back from weights to text: sampling", "name"),
        *row(390, ("prompt", "through the same", "tokenizer"), ("model", "logits of the", "next token"),
             ("choice", "temperature, top-k,", "then one is drawn"), ("text", "the token is shown", "and appended")),
        *arrows(425, 3),
        line((xs[3] + 95, 460), (xs[3] + 95, 484), (xs[1] + 95, 484), (xs[1] + 95, 462)),
        text(xs[1] + 107, 502, "again, with one token more", "dim"),
    ]  # fmt: skip
    return picture(892, 520, "From text to weights, and from weights to text", parts)


DIAGRAMS = {"model.svg": model_diagram, "training_steps.svg": training_diagram}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
