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
        section("How it was made", *map(remark, [*_score(record), _made(record, page.step), page.rounding, _PRIVATE])),
    ]
    data = {"model": page.model, "reading": page.reading, "examples": list(page.examples), "file": f"{file_name(record.name)}.txt"}
    script = Markup("".join(map(asset, (*MODEL_SCRIPTS, "writer.js"))))
    return html_page(one_line(record.name), parts, script=script, data=data)


_PRIVATE = "The model runs inside this page: nothing that you type leaves it. The page was made with minigpt."


def _about(record: RunRecord) -> str:
    learned = f" that has read {one_line(record.corpus.label)} and nothing else" if record.corpus else ""
    return f"A language model of {record.n_params:,} numbers{learned}. Give it a beginning."


def _score(record: RunRecord) -> list[str]:
    best = record.best
    if best is None:
        return []
    choices = math.exp(best.nats_per_char)
    return [
        f"Score: {best.nats_per_char:.4f} nats per character on text that it had not read. "
        f"That is as hard as guessing each next character among {choices:.1f} equally likely ones."
    ]


def _made(record: RunRecord, step: int) -> str:
    where = one_line(record.device_name or record.device)
    return (
        f"Made: {record.arch}, {record.vocab_size:,} tokens ({one_line(record.tokenizer)}), weights of step {step:,}; "
        f"trained from scratch in {format.duration(record.elapsed_s)} on {where}."
    )
