"""What a model expects after each of its layers: the head reads the stream there, as if the later layers were not there (nostalgebraist
2020). Early layers are read with the last layer's eyes, so their guesses may be odd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minigpt_cli.data.cleaning import cleaned_prompt
from minigpt_cli.errors import UsageError
from minigpt_cli.generation.open_run import text_bounds
from minigpt_cli.generation.samples import prompt_ids
from minigpt_cli.runstore.directory import Run
from minigpt_cli.tokenization.contract import Spelling


@dataclass(frozen=True)
class Lens:
    """A text, what each token of it cost, and what was expected in its place after each layer."""

    tokens: list[str]
    nats: list[float | None]  # of each token; None for the first, which follows nothing
    stages: list[str]  # "embedding", "layer 0", …
    guesses: list[list[tuple[str, float]]]  # of each stage: for every token but the first the most likely one, and its probability


def read_text(run: Run, text: str) -> Lens:
    """How the run's best model, or the checkpoint that was named with it, reads the first tokens of `text`, at most a window. Raises
    UsageError for a text that it cannot read."""
    import torch

    from minigpt_cli import checkpoints
    from minigpt_cli.models.plain import Values, opened

    loaded = checkpoints.load(run, run.checkpoint or "best")
    model: Any = loaded.model
    pieces = loaded.tokenizer.token_bytes()
    start = text_bounds(loaded.record, loaded.tokenizer).get("start", ())
    ids = np.asarray([*start, *prompt_ids(loaded.tokenizer, cleaned_prompt(run.config.data, text))])[: run.config.model.block_size + 1]
    if len(ids) < 2:
        raise UsageError(f"--text {text!r} is too short: give two characters or more")
    if not hasattr(model, "blocks"):
        raise UsageError(f"run {run.name!r} is a {run.record.arch} model and has no layers to look into: leave out --text")
    tokens, values = torch.tensor([ids.tolist()]), Values()
    with torch.inference_mode(), opened(model, watch=values):
        logits = model(tokens[:, :-1]).logits[0]
        n_layer = model.config.n_layer
        streams = [values[f"stream.{layer}.before"][0] for layer in range(n_layer)]
        stages = [*((model.final_norm(stream) @ model.output_weight.T).softmax(-1) for stream in streams), logits.softmax(-1)]
    spelled = ["".join(Spelling(pieces).pieces([ids[i : i + 1]], "replace")) for i in range(len(ids))]
    found = []
    for probabilities in stages:
        best, which = probabilities.max(-1)
        found.append([(pieces[i].decode("utf-8", "replace"), p) for i, p in zip(which.tolist(), best.tolist(), strict=True)])
    nats = (-logits.log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)).tolist()
    return Lens(spelled, [None, *nats], ["embedding", *(f"layer {i}" for i in range(n_layer))], found)
