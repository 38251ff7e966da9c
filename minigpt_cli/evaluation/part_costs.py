"""What the parts of a transformer are worth, and how much context it uses: losses on the same characters with and without.

A head, a feed-forward or a layer is replaced by its mean output over the sample; positions are replaced by one for all (models/plain.py).
Nothing before the layer of a part changes, so the model continues from the residual stream that it had there.
B windows, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt_cli.evaluation.characters import begins_character
from minigpt_cli.evaluation.sample import Floats, Ints, Sample
from minigpt_cli.evaluation.windows import exact_products
from minigpt_cli.models.layers import Dropout, set_dropout_generator
from minigpt_cli.models.plain import opened, removable

Advance = Callable[[int], None]
"""Called with the number of tokens that were read."""

TARGETS = 1024  # tokens that are predicted from contexts of several lengths
_CONTEXT_TOKENS = 1 << 17  # of the longest contexts together, at most
_TOKENS = 1 << 12  # in one batch
_NUMBERS = 1 << 24  # of logits, or of attention weights, in one batch: 64 MiB
READINGS = 5
WINDOWS_READ = 8  # in one reading with dropout


def batches(rows: Ints, per_token: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows (N, T) a few at a time, with their places; reading a token makes `per_token` numbers."""
    at_once = max(1, min(_TOKENS, _NUMBERS // per_token) // rows.shape[1])
    for start in range(0, len(rows), at_once):
        place = slice(start, min(start + at_once, len(rows)))
        yield place, torch.from_numpy(np.array(rows[place]))


def parts_of_model(model: Any) -> list[str]:
    """The parts whose worth is measured; none of a model without blocks."""
    return [*removable(model), "positions"] if hasattr(model, "blocks") else []


def work(model: Any, sample: Sample) -> int:
    """Tokens that `part_losses` and `context_losses` read, counted as if every layer read them."""
    depth = max(1, len(getattr(model, "blocks", ())))
    by_part = sum((depth - _first_layer(part)) / depth for part in parts_of_model(model))
    return round((1 + by_part) * len(sample.is_text)) + sum(n * len(_targets(sample)) for n in context_lengths(sample.window))


def part_losses(model: Any, sample: Sample, means: Mapping[str, Tensor], advance: Advance) -> tuple[Floats, dict[str, Floats]]:
    """Nats of each predicted token, (N * T,): of the whole model, and without each part."""
    parts = parts_of_model(model)
    whole, without = np.empty(sample.rows[:, 1:].shape), {part: np.empty(sample.rows[:, 1:].shape) for part in parts}
    with torch.inference_mode(), exact_products():
        for place, rows in batches(sample.rows, model.vocab_size):
            ids, targets = rows[:, :-1], rows[:, 1:]
            with _streams(model) as streams:
                whole[place] = _nats(model(ids).logits, targets)
            advance(ids.numel())
            for part in parts:
                layer = _first_layer(part)
                with opened(model, without={part}, means=means):
                    logits = (model.from_layer(layer, streams[layer], ids) if layer else model(ids)).logits
                without[part][place] = _nats(logits, targets)
                advance(ids.numel() * (len(streams) - layer) // len(streams))
    return whole.ravel(), {part: nats.ravel() for part, nats in without.items()}


def _first_layer(part: str) -> int:
    """The first layer that differs without the part."""
    return 0 if part == "positions" else int(part.split()[1].partition(".")[0])


@contextmanager
def _streams(model: Any) -> Iterator[list[Tensor]]:
    """The residual stream before each block, in the forward pass of the `with` block."""
    found: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda _, args: found.append(args[0])) for block in getattr(model, "blocks", ())]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _nats(logits: Tensor, targets: Tensor) -> Floats:
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return np.asarray(losses.view_as(targets).double().numpy())


def context_lengths(window: int) -> list[int]:
    """1, 2, 4, … and the whole window."""
    return [*(1 << i for i in range(window.bit_length()) if 1 << i < window), window]


def _targets(sample: Sample) -> Ints:
    """Places in the stream, evenly apart, of at most TARGETS tokens that are text and have a whole window before them."""
    places = np.flatnonzero(sample.is_text) + 1
    places = places[places + len(sample.before) >= sample.window]
    most = max(1, min(TARGETS, _CONTEXT_TOKENS // sample.window))
    return places if len(places) <= most else places[np.linspace(0, len(places) - 1, most).astype(int)]


def context_losses(model: Any, sample: Sample, advance: Advance) -> tuple[float, dict[int, Floats]]:
    """Characters per token of the same targets, and their nats, (n,), with the nearest 1, 2, 4, … tokens as all their context."""
    places, tokens = _targets(sample), np.concatenate([sample.before, sample.stream])
    if not len(places):
        return 1.0, {}
    found: dict[int, Floats] = {}
    with torch.inference_mode(), exact_products():
        for length in context_lengths(sample.window):
            ends = places + len(sample.before)
            windows = tokens[ends[:, None] + np.arange(-length, 1)]  # (n, length + 1)
            nats = [
                _nats(model(rows[:, :-1]).logits[:, -1:], rows[:, -1:])[:, 0]
                for _, rows in _told(batches(windows, model.vocab_size), advance)
            ]
            found[length] = np.concatenate(nats)
    return float(begins_character(sample.text).sum() / sample.is_text.sum()), found


def _told(items: Iterator[tuple[slice, Tensor]], advance: Advance) -> Iterator[tuple[slice, Tensor]]:
    for place, rows in items:
        yield place, rows
        advance(rows[:, 1:].numel())


def dropout_readings(model: nn.Module, windows: Ints) -> tuple[list[float], list[float]]:
    """Nats per token of the windows (B, T + 1), read several times: with dropout, and without."""
    rows = torch.from_numpy(np.array(windows))
    layers = [module for module in model.modules() if isinstance(module, Dropout)]

    def read(seed: int, on: bool) -> float:
        set_dropout_generator(model, torch.Generator().manual_seed(seed))
        for layer in layers:
            layer.training = on
        with torch.inference_mode(), exact_products():
            return float(_nats(model(rows[:, :-1]).logits, rows[:, 1:]).mean())

    try:
        return [read(seed, True) for seed in range(READINGS)], [read(seed, False) for seed in range(READINGS)]
    finally:
        set_dropout_generator(model, None)
        model.eval()
