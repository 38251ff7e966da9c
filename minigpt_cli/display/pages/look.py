"""The page of `runs look`: it holds the model and computes with it what is shown. It uses model.js and the files beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from minigpt_cli.config import REMOVABLE
from minigpt_cli.display.inside import role_in_words, unit_of
from minigpt_cli.display.pages.intervals import Interval, interval_rows
from minigpt_cli.display.pages.page import Markup, asset, html_page, in_columns, remark, section, table, tag, tinted
from minigpt_cli.display.pages.writer import MODEL_SCRIPTS, NO_CONNECTION, how_made
from minigpt_cli.display.tables import Column
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.escaping import one_line

if TYPE_CHECKING:
    from minigpt_cli.evaluation.inside import ContextLoss, Inside, KindLoss, LayerExperts, PartCost
    from minigpt_cli.runstore.records import RunRecord

_SCRIPTS = (*MODEL_SCRIPTS, "tokens.js", "look.js", "look_parts.js", "look_steps.js")
_ROWS = 24  # of the measured parts


@dataclass(frozen=True)
class LookPage:
    """What the page shows and computes with."""

    record: RunRecord
    model: Mapping[str, Any]  # as model.js and tokenizer.js read it, with `means`
    start: Sequence[int]  # ids before every text
    empty: Sequence[int]  # ids of an empty text
    text: str  # in the box at first
    sample: Mapping[str, Any]  # ids of a text whose loss is computed, and how many characters they are
    inside: Inside  # what was measured


def look_page(page: LookPage) -> str:
    """The page."""
    record, config, found = page.record, page.model["config"], page.inside
    body = Markup(asset("look.html").replace("<!--measured-->", _worth(found.parts)))
    measured = in_columns([_context(found.context), _losses(found.kinds), *map(_experts, found.experts)])
    parts = [remark(_about(record, config)), body, measured]
    data = {name: getattr(page, name) for name in ("model", "start", "empty", "text", "sample")}
    data |= {"removable": REMOVABLE, "code": code_lines(config, page.model["tokenizer"]["kind"])}
    data["parts"] = [_part(part, unit_of(record)) for part in found.parts]
    script = Markup("".join(map(asset, _SCRIPTS)))
    return html_page(one_line(f"Inside {record.name}"), parts, head=NO_CONNECTION, script=script, data=data)


def _about(record: RunRecord, config: Mapping[str, Any]) -> str:
    score = f"; {record.best.nats_per_char:.4f} nats per character" if record.best else ""
    text = f" of {one_line(record.corpus.label)}" if record.corpus else ""
    return (
        f"A {record.arch} GPT{text}: {record.n_params:,} parameters, {config['n_layer']} layers of {config['n_head']} heads{score}; "
        f"{how_made(record)}. It runs inside this page, and every number here is computed by it."
    )


def _part(part: PartCost, unit: str) -> dict[str, Any]:
    """A part as look_parts.js reads it."""
    roles = {role: role_in_words(role, unit) for role in part.roles}
    return {"part": part.part, "cost": part.delta_nats_per_char, "measurable": part.measurable, "roles": roles}


def _worth(parts: Sequence[PartCost]) -> Markup:
    """What each part is worth; the largest cost first."""
    if not parts:
        return Markup()
    ordered = sorted(parts, key=lambda part: -part.delta_nats_per_char)
    rows = [
        Interval(part.part, *part.ci95, f"{part.delta_nats_per_char:+.4f}", 1 if part.measurable else None, part.delta_nats_per_char)
        for part in ordered[:_ROWS]
    ]
    caption = remark("Nats per character without the part minus with it, with 95 % intervals; grey: no measurable effect.")
    return tag("div", tag("h3", "What each part is worth"), caption, interval_rows(rows))


def _context(context: Sequence[ContextLoss]) -> Markup:
    """How much the context brings."""
    if not context:
        return Markup()
    rows = [Interval(f"{each.tokens:,}", *each.ci95, f"{each.nats_per_char:.3f}", 0, each.nats_per_char) for each in context]
    caption = remark("The same characters, predicted from so many tokens before them: nats per character, with 95 % intervals.")
    return section("How much context it uses", caption, interval_rows(rows))


def _losses(losses: Sequence[KindLoss]) -> Markup:
    columns = [Column("kind"), *(Column(name, right=True) for name in ("of text", "of loss", "nats/char"))]
    rows = [[each.kind, f"{each.share:.1%}", f"{each.share_of_loss:.1%}", f"{each.nats_per_char:.3f}"] for each in losses]
    return section("Where it is surprised", table(columns, rows)) if rows else Markup()


def _experts(layer: LayerExperts) -> Markup:
    """How the characters of each kind are shared among the experts; equal shares have equal colours."""
    columns = [Column("kind"), *(Column(str(n), right=True) for n in range(len(layer.shares)))]
    rows = [
        [kind, *(tinted(f"{share:.0%}", share * len(shares) / 2, 0) for share in shares)]
        for kind, shares in {"all": layer.shares, **layer.by_kind}.items()
    ]
    return section(f"Experts of layer {layer.layer}", table(columns, rows))


# ---- the lines of Python that compute each step

_NORM = {
    "rms": [("models/layers.py", "y = x.float() * torch.rsqrt(x.float().square().mean", 2)],
    "layer": [("models/layers.py", "centered = x.float() - x.float().mean", 3)],
}
_EITHER: dict[str, list[tuple[str, str, int]]] = {
    "rotation": [("models/attention.py", "cos, sin = angles", 3)],
    "scores": [("models/attention.py", "scores = (q @ k.mT)", 1)],
    "softmax": [("models/attention.py", "scores = scores.masked_fill", 2)],
    "mix": [("models/attention.py", "return weights @ v", 1)],
    "add1": [
        ("models/transformer.py", "x = self.add(x, self.attention(", 1),
        ("models/transformer.py", "return x + y if self.residual else y", 1),
    ],
    "add2": [("models/transformer.py", "y, aux_loss = self.feed_forward(self.norm2(x))", 2)],
    "head": [("models/transformer.py", "x = self.final_norm(x)", 2)],
}
_CLASSIC = {
    "embedding": [("models/classic.py", "positions = torch.arange(start, end", 2)],
    "qkv": [("models/classic.py", "qkv = self.qkv(x).view", 2)],
    "out": [("models/classic.py", "y = y.transpose(1, 2).reshape", 2)],
    "mlp": [("models/layers.py", "y: Tensor = self.down(activate(self.up(x)", 1)],
}
_MODERN = {
    "embedding": [("models/transformer.py", "x: Tensor = self.token_embedding(ids)", 1)],
    "qkv": [("models/modern.py", "heads = self.qkv(x).view", 4)],
    "out": [("models/modern.py", "y = y.transpose(1, 2).reshape", 2)],
    "mlp": [
        ("models/layers.py", "y: Tensor = self.down(swiglu(self.gate_up(x)))", 1),
        ("models/layers.py", "gate, up = gate_up.chunk(2", 2),
    ],
}
_MOE = _MODERN | {
    "mlp": [
        ("models/moe.py", "probs = self.route(flat)", 5),
        ("models/moe.py", "token, nth = (chosen == expert).nonzero", 3),
    ]
}
_TOKENIZERS = {
    "char": [("tokenization/char.py", 'ids = self._table.take(points, mode="clip")', 1)],
    "byte": [("tokenization/bpe.py", "return np.frombuffer(encoded(text), np.uint8)", 1)],
    "bpe": [("tokenization/library.py", "return [encoding.ids for encoding in", 1)],
}


def code_lines(config: Mapping[str, Any], tokenizer: str) -> dict[str, list[dict[str, Any]]]:
    """For each step the file, the number of the first line, and the lines, as they stand in the package. Raises MiniGPTError if they do
    not stand there."""
    own = _CLASSIC if not config["rms_norm"] else _MOE if config["n_experts"] else _MODERN
    norm = _NORM["rms" if config["rms_norm"] else "layer"]
    steps = {"id": _TOKENIZERS[tokenizer], "norm1": norm, "norm2": norm} | own | _EITHER
    return {name: [_excerpt(*place) for place in places] for name, places in steps.items()}


def _excerpt(file: str, begins: str, count: int) -> dict[str, Any]:
    lines = (files("minigpt_cli") / file).read_text(encoding="utf-8").splitlines()
    found = [n for n, line in enumerate(lines) if line.strip().startswith(begins)]
    if len(found) != 1:
        raise MiniGPTError(f"minigpt_cli/{file} has {len(found)} lines that begin with {begins!r}: the page of runs look wants one")
    return {"file": file, "line": found[0] + 1, "text": textwrap.dedent("\n".join(lines[found[0] : found[0] + count]))}
