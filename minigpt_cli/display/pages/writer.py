"""A page to send to a friend: it holds a run's model and writes, without a server. It uses model.js, tokenizer.js and sampling.js."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import format
from minigpt_cli.display.pages.page import Markup, asset, html_page, remark, section
from minigpt_cli.escaping import file_name, one_line

if TYPE_CHECKING:
    from minigpt_cli.runstore.records import RunRecord

MODEL_SCRIPTS = ("model.js", "tokenizer.js", "sampling.js")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
NO_CONNECTION = Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">')
"""In the head of a page: the browser then fetches nothing for it and sends nothing."""


@dataclass(frozen=True)
class Writer:
    """What the page shows and computes with."""

    record: RunRecord
    step: int  # of the weights
    model: Mapping[str, Any]  # as model.js and tokenizer.js read it
    reading: Mapping[str, Any]  # what stands before and after a prompt, and which tokens end a text
    examples: Sequence[str]  # prompts
    rounding: str  # how the weights were rounded and what that costs


def writer_page(page: Writer) -> str:
    """The page."""
    record = page.record
    parts = [
        remark(_about(record)),
        asset("writer.html"),
        section("How it was made", *map(remark, [*_score(record, page.step), _made(record, page.step), page.rounding, _PRIVATE])),
    ]
    data = {"model": page.model, "reading": page.reading, "examples": list(page.examples), "file": f"{file_name(record.name)}.txt"}
    script = Markup("".join(map(asset, (*MODEL_SCRIPTS, "writer.js"))))
    return html_page(one_line(record.name), parts, head=NO_CONNECTION, script=script, data=data)


_PRIVATE = "The model runs inside this page, which may not open a connection: nothing that you type leaves it. Made with minigpt."


def _about(record: RunRecord) -> str:
    learned = f" that has read {one_line(record.corpus.label)}" if record.corpus else ""
    alone = " and nothing else" if record.corpus and record.base is None else ""
    return f"A language model of {record.n_params:,} numbers{learned}{alone}. Give it a beginning."


def _score(record: RunRecord, step: int) -> list[str]:
    best = record.best
    if best is None or best.step != step:  # other weights than those that were scored
        return []
    choices = math.exp(best.nats_per_char)
    return [
        f"Score: {best.nats_per_char:.4f} nats per character on text that it had not read. "
        f"That is as hard as guessing each next character among {choices:.1f} equally likely ones."
    ]


def _made(record: RunRecord, step: int) -> str:
    return (
        f"Made: {record.arch}, {record.vocab_size:,} tokens ({one_line(record.tokenizer)}), weights of step {step:,}; {how_made(record)}."
    )


def how_made(record: RunRecord) -> str:
    """Whether a run was trained here and from what, how long and on what."""
    base = one_line(record.base.run) if record.base else ""
    if not record.elapsed_s:
        return f"the weights come from {base}" if base else "not trained yet"
    begin = f"trained further from {base}" if base else "trained from scratch"
    return f"{begin} in {format.duration(record.elapsed_s)} on {one_line(record.device_name or record.device)}"
