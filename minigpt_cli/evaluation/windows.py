"""The windows in which a text is scored, and a model run on them. B batch, T tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from minigpt_cli.models.contract import Output

_TOKENS = 1 << 13  # in one batch
_LOGITS = 1 << 24  # elements of logits in one batch: 64 MiB at float32, however large the vocabulary


class Window(NamedTuple):
    """Tokens `start` to `end` of a text and its context, of which `first_scored` to `end` are scored."""

    start: int
    first_scored: int
    end: int


def windows_of(n_tokens: int, n_before: int, block_size: int, stride: int) -> Iterator[Window]:
    """The windows of `n_tokens` tokens, of which the first `n_before` are context. Without context, scoring begins at token 1."""
    position = n_before or 1
    while position < n_tokens:
        start = max(0, min(position + stride, n_tokens) - 1 - block_size) if stride else position - 1
        end = min(start + block_size + 1, n_tokens)
        yield Window(start, position, end)
        position = end


def run_windows(
    model: nn.Module, tokens: npt.NDArray[np.int64], windows: Iterable[Window], block_size: int
) -> Generator[tuple[list[Window], Output, Tensor]]:
    """Windows of equal length with the model's output and their targets (B, T), exactly and without dropout; the model keeps its mode."""
    device, vocab_size = next(model.parameters()).device, int(model.vocab_size)  # type: ignore[arg-type]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), exact_products():
            for batch in _batches(windows, batch_rows(block_size, vocab_size)):
                rows = torch.from_numpy(np.stack([tokens[w.start : w.end] for w in batch])).to(device, non_blocking=True)  # (B, T + 1)
                yield batch, model(rows[:, :-1]), rows[:, 1:]
    finally:
        model.train(was_training)


def batch_rows(block_size: int, vocab_size: int) -> int:
    """Windows in one batch."""
    return max(1, min(_TOKENS, _LOGITS // vocab_size) // block_size)


def _batches(windows: Iterable[Window], rows: int) -> Iterator[list[Window]]:
    """Windows of equal length together, at most `rows` at once; a shorter one goes alone."""
    group: list[Window] = []
    for window in windows:
        if group and (len(group) == rows or window.end - window.start != group[0].end - group[0].start):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


@contextmanager
def exact_products() -> Iterator[None]:
    """Exact float32 products: no TF32 and no bfloat16 passes, whatever training chose."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)
