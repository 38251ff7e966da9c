"""Nats of every token and of every character of a text under a model. Every score is made here.

Protocol: the text is cut into consecutive windows of `block_size` tokens, as such models are usually evaluated. A token is conditioned
on the tokens before it in its window; the first token of a window on the last token before the window. With `stride` N windows
overlap and only the last N tokens of each are scored, so that every token is conditioned on at least block_size - N + 1 tokens. The very
first token of a text without context costs log V.
Conversations are read whole, but only their answers are scored, because only the answers are learned. Of several documents, each
follows an end-of-text token (data/parts.py says which tokens these are).
B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import Parts, context_of, parts_of
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.evaluation.characters import per_character, spelled
from minigpt_cli.evaluation.scores import PartsScored, Score, make_score
from minigpt_cli.tokenization.contract import Tokenizer, end_of_text, token_lengths

Advance = Callable[[int, int], None]
"""Called now and then while a text is scored, with the tokens done and all its tokens. An error that it raises ends the work."""

_TOKENS = 1 << 13  # in one batch
_LOGITS = 1 << 24  # elements of logits in one batch: 64 MiB at float32, however large the vocabulary
_PENDING = 64  # batches whose results may wait on the device, so that a GPU is not held up


def token_nats(
    model: nn.Module,
    ids: npt.ArrayLike,
    *,
    context: npt.ArrayLike | None = None,
    block_size: int,
    stride: int = 0,
    advance: Advance = lambda done, total: None,
) -> npt.NDArray[np.float64]:
    """Nats of each of `ids` under the model, (len(ids),), given the tokens before it and `context`, the tokens before `ids`.

    Computed on the model's device, without dropout; the model keeps its mode. Not finite where the model's logits are not.
    Raises UsageError for an impossible stride.
    """
    if not 0 <= stride <= block_size:
        raise UsageError(f"--stride {stride} is outside 1 to {block_size}, the model's block size (0: consecutive windows)")
    before = np.asarray([] if context is None else context, dtype=np.int64)[-block_size:]
    tokens = np.concatenate([before, np.asarray(ids, dtype=np.int64)])
    device, vocab_size = next(model.parameters()).device, int(model.vocab_size)  # type: ignore[arg-type]
    nats = np.full(len(tokens), np.log(vocab_size))
    pending: list[tuple[list[_Window], Tensor]] = []
    most_pending = 1 if device.type == "cpu" else _PENDING
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), exact_products():
            for windows in _batches(len(tokens), len(before), block_size, stride, batch_rows(block_size, vocab_size)):
                rows = torch.from_numpy(np.stack([tokens[w.start : w.end] for w in windows])).to(device, non_blocking=True)  # (B, T + 1)
                logits, targets = model(rows[:, :-1]).logits, rows[:, 1:]  # (B, T, V), (B, T)
                losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
                pending.append((windows, losses.view_as(targets)))
                if len(pending) >= most_pending:
                    _collect(pending, nats)
                    advance(windows[-1].end - len(before), len(tokens) - len(before))
            _collect(pending, nats)
    finally:
        model.train(was_training)
    return nats[len(before) :]


def batch_rows(block_size: int, vocab_size: int) -> int:
    """Windows in one batch."""
    return max(1, min(_TOKENS, _LOGITS // vocab_size) // block_size)


@contextmanager
def exact_products() -> Iterator[None]:
    """Exact float32 products: no TF32 and no bfloat16 passes, whatever training chose."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


class _Window(NamedTuple):
    """Tokens `start` to `end` of a text and its context, of which `first_scored` to `end` are scored."""

    start: int
    first_scored: int
    end: int


def _windows(n_tokens: int, n_before: int, block_size: int, stride: int) -> Iterator[_Window]:
    """The windows of `n_tokens` tokens, of which the first `n_before` are context. Without context, scoring begins at token 1."""
    position = n_before or 1
    while position < n_tokens:
        start = max(0, min(position + stride, n_tokens) - 1 - block_size) if stride else position - 1
        end = min(start + block_size + 1, n_tokens)
        yield _Window(start, position, end)
        position = end


def _batches(n_tokens: int, n_before: int, block_size: int, stride: int, rows: int) -> Iterator[list[_Window]]:
    """Windows of equal length together, at most `rows` at once; a shorter one is a batch of its own."""
    group: list[_Window] = []
    for window in _windows(n_tokens, n_before, block_size, stride):
        if group and (len(group) == rows or window.end - window.start != group[0].end - group[0].start):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _collect(pending: list[tuple[list[_Window], Tensor]], out: npt.NDArray[np.float64]) -> None:
    """Bring results to the host, in float64, and put each scored token's where it belongs."""
    for windows, nats in pending:
        for window, row in zip(windows, nats.cpu().numpy(), strict=True):
            out[window.first_scored : window.end] = row[window.first_scored - window.start - 1 :]
    pending.clear()


def _positions(n_tokens: int, n_before: int, block_size: int, stride: int) -> npt.NDArray[np.int64]:
    """How many tokens of its window each token after the context is conditioned on, (n_tokens - n_before,)."""
    out = np.zeros(n_tokens, dtype=np.int64)
    for window in _windows(n_tokens, n_before, block_size, stride):
        out[window.first_scored : window.end] = np.arange(window.first_scored - window.start, window.end - window.start)
    return out[n_before:]


def _since_document(tokens: npt.NDArray[Any], end: int, n_before: int) -> npt.NDArray[np.int64]:
    """How many tokens of its own document come before each token, (n_tokens,), with the end of the document before it; the first document
    may have `n_before` more."""
    at = np.arange(len(tokens))
    latest = np.maximum.accumulate(np.where(tokens == end, at, -n_before))
    before: npt.NDArray[np.int64] = np.concatenate([[-n_before], latest[:-1]])
    return at - before


@dataclass(frozen=True)
class Reader:
    """A model with its tokenizer, and the windows in which it reads a text."""

    model: nn.Module
    tokenizer: Tokenizer
    block_size: int
    stride: int = 0
    advance: Advance = lambda done, total: None


def score_ids(reader: Reader, ids: npt.ArrayLike, *, parts: Parts | None = None, context: npt.ArrayLike | None = None) -> Score:
    """The score of a text given as its token ids, or of its `parts` alone.

    Raises MiniGPTError if the ids are not whole text or the score is not finite, UsageError if there is nothing to score.
    """
    tokens = np.asarray(ids)
    if not len(tokens):
        raise UsageError("there is no text to score: the file or split is empty")
    reader.advance(0, len(tokens))
    model, block_size, stride = reader.model, reader.block_size, reader.stride
    pieces = reader.tokenizer.token_bytes()
    text = spelled(tokens, pieces).encode()
    if (largest := int(tokens.max())) >= (vocab_size := int(model.vocab_size)):  # type: ignore[arg-type]
        raise MiniGPTError(f"token {largest} is not in the model's vocabulary of {vocab_size}: this tokenizer is not the model's")
    nats = token_nats(model, tokens, context=context, block_size=block_size, stride=stride, advance=reader.advance)
    if not np.isfinite(nats).all():
        raise MiniGPTError("the model's loss on this text is not finite: its weights are damaged, or it diverged")
    n_before = 0 if context is None else min(len(np.asarray(context)), block_size)
    in_window = _positions(n_before + len(tokens), n_before, block_size, stride)
    if (end := getattr(model, "end_of_text", None)) is not None:  # the model was trained with --document-mask
        in_window = np.minimum(in_window, _since_document(tokens, end, n_before))
    if parts is not None:
        return _score_parts(pieces, tokens, parts, nats, in_window, text)
    char_nats, begun_by = per_character(nats, token_lengths(pieces)[tokens], text)
    return make_score(nats, char_nats, in_window[begun_by], text)


def _score_parts(
    pieces: list[bytes],
    tokens: npt.NDArray[Any],
    parts: Parts,
    nats: npt.NDArray[np.float64],
    in_window: npt.NDArray[np.int64],
    whole: bytes,
) -> Score:
    """The score of the parts of a text whose tokens cost `nats`; the cost of a mark is added to the token before it."""
    scored = np.flatnonzero(parts.scored)  # (n,) tokens of parts
    is_text = ~parts.marks[scored]
    if not is_text.any():
        raise UsageError(f"the {parts.kind} hold no text, so nothing can be scored: use longer ones")
    before = np.maximum.accumulate(np.where(is_text, np.arange(len(scored)), -1))  # (n,) the token that each mark's nats are added to
    cost = np.bincount(np.where(before < 0, is_text.argmax(), before), weights=nats[scored], minlength=len(scored))[is_text]
    kept = scored[is_text]
    text = spelled(tokens[kept], pieces).encode()
    char_nats, begun_by = per_character(cost, token_lengths(pieces)[tokens[kept]], text)
    first = np.searchsorted(begun_by, np.searchsorted(kept, parts.starts))  # character of each part
    ends_nats = float(nats[scored][~is_text].sum())
    return make_score(
        nats[scored],
        char_nats,
        in_window[kept[begun_by]],
        text,
        parts=PartsScored(parts.kind, first.astype(np.int64), ends_nats),
        text_sha256=hashlib.sha256(whole).hexdigest(),
    )


def score_split(reader: Reader, dataset: Dataset, split: str) -> Score:
    """The score of a split of a run's own data, read after the split before it: what the record, `eval` and `compare` all show."""
    tokens, context = dataset.split(split).tokens, context_of(dataset, split, reader.block_size)
    return score_ids(reader, tokens, parts=parts_of(tokens, reader.tokenizer, documents=dataset.in_documents), context=context)


def score_text(reader: Reader, text: str, *, in_parts: bool = False) -> Score:
    """The score of `text`; `in_parts`: of the answers of conversations in their template, or of documents that each end in END_OF_TEXT."""
    ids = np.asarray(reader.tokenizer.encode(text))
    parts = parts_of(ids, reader.tokenizer, documents=True) if in_parts else None
    context = np.asarray([end_of_text(reader.tokenizer)]) if parts is not None and parts.kind == "documents" else None
    return score_ids(reader, ids, parts=parts, context=context)
