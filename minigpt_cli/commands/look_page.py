"""minigpt runs look --html: the page in which a run's model can be looked through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_cli import checkpoints
from minigpt_cli.checkpoints import Loaded
from minigpt_cli.commands.options import check_page
from minigpt_cli.data.opening import opening_of
from minigpt_cli.display.pages.look import LookPage, look_page
from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation.attention_roles import watch_sample
from minigpt_cli.evaluation.characters import begins_character
from minigpt_cli.evaluation.evaluate_run import dataset_of
from minigpt_cli.evaluation.inside import Inside
from minigpt_cli.evaluation.sample import Sample, sample_of
from minigpt_cli.generation.open_run import text_bounds
from minigpt_cli.generation.samples import prompt_ids
from minigpt_cli.interchange import javascript
from minigpt_cli.runstore.directory import Run
from minigpt_cli.storage.atomic_io import check_parent, write_atomic

_LOSS_CHARS = 512  # characters whose loss the page computes
_TEXT_CHARS = 64  # characters in the box at first
_SEARCHED = 4096  # characters among which a text of words is looked for
_DIGITS = 7  # of a mean: as many as float32 holds


class PageOfRun:
    """A run's model, ready for its page; made before anything is measured, so that an error comes at once."""

    def __init__(self, run: Run, out: Path) -> None:
        """Raises UsageError for what cannot be a page."""
        check_page(out)
        check_parent(out)
        self.out = out
        self._loaded = checkpoints.load(run, run.checkpoint or "best")
        if (n := javascript.n_params(self._loaded)) > javascript.F16_PARAMS:
            most = f"a page to look through holds {javascript.F16_PARAMS:,} parameters"
            raise UsageError(f"{most}, and this run has {n:,}: leave out --html")
        self._model = javascript.packed(self._loaded, "f16")
        self._sample = sample_of(dataset_of(run), run.config.model.block_size)

    def write(self, inside: Inside, text: str | None) -> None:
        """Write the page, with `text` in its box, or the beginning of the validation text."""
        loaded, sample = self._loaded, self._sample
        means = watch_sample(loaded.model, sample, loaded.tokenizer.token_bytes(), lambda _: None).means
        page = LookPage(
            record=loaded.record,
            model=self._model | {"means": {name: [_rounded(x) for x in mean.flatten().tolist()] for name, mean in means.items()}},
            start=text_bounds(loaded.record, loaded.tokenizer).get("start", ()),
            empty=prompt_ids(loaded.tokenizer, ""),
            text=_beginning(loaded, sample) if text is None else text,
            sample=_loss_sample(sample),
            inside=inside,
        )
        write_atomic(self.out, look_page(page))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _loss_sample(sample: Sample) -> dict[str, Any]:
    """The first tokens of the sample after the one before it, which of them count, and how many characters those are."""
    n_bytes = len(sample.text.decode()[:_LOSS_CHARS].encode())
    so_far = np.cumsum(sample.n_bytes * sample.is_text)
    n = int(np.searchsorted(so_far, n_bytes)) + 1
    chars = int(begins_character(sample.text[: int(so_far[:n][-1])]).sum())
    return {"ids": sample.stream[: n + 1].tolist(), "counted": sample.is_text[:n].astype(int).tolist(), "chars": chars}


def _beginning(loaded: Loaded, sample: Sample) -> str:
    """A few words of the validation text, from the beginning of a line; of conversations a question."""
    if sample.parts is not None and sample.parts.kind == "answers":
        return opening_of(loaded.record, loaded.tokenizer).raw
    text = sample.text.decode()
    if sample.parts is not None and len(sample.parts.first) > 1:
        text = text[: int(sample.parts.first[1])]  # the first document
    lines = [match.end() for match in re.finditer("\n", text[:_SEARCHED])]
    places = lines if sample.parts is None and lines else [0, *lines]  # a split may begin in the middle of a line
    pieces = [text[place : place + _TEXT_CHARS].strip() for place in places]
    piece = next((piece for piece in pieces if len("".join(piece.split())) > 0.75 * _TEXT_CHARS), pieces[0])
    return piece.rsplit(" ", 1)[0] if len(piece) > _TEXT_CHARS // 2 and " " in piece else piece
