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
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from minigpt_cli.accel.install import cross_entropy
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import Parts, context_of, parts_of
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.evaluation.characters import per_character, spelled
from minigpt_cli.evaluation.recent import RecentTokens
from minigpt_cli.evaluation.scores import PartsScored, Score, make_score
from minigpt_cli.evaluation.windows import Window, run_windows, windows_of
from minigpt_cli.tokenization.contract import Tokenizer, end_of_text, token_lengths

Advance = Callable[[int, int], None]
"""Called now and then while a text is scored, with the tokens done and all its tokens. An error that it raises ends the work."""

_PENDING = 64  # batches whose results may wait on the device, so that a GPU is not held up


def token_nats(
    model: nn.Module,
    ids: npt.ArrayLike,
    *,
    context: npt.ArrayLike | None = None,
    block_size: int,
    stride: int = 0,
    recent: int = 0,
    advance: Advance = lambda done, total: None,
) -> npt.NDArray[np.float64]:
    """Nats of each of `ids` under the model, (len(ids),), given the tokens before it and `context`, the tokens before `ids`.

    With `recent` N, what followed similar states among the last N of them is expected again (recent.py). Computed on the model's device,
    without dropout; the model keeps its mode. Not finite where the model's logits are not.
    Raises UsageError for an impossible stride, or for `recent` with a model that has no states.
    """
    if not 0 <= stride <= block_size:
        raise UsageError(f"--stride {stride} is outside 1 to {block_size}, the model's block size (0: consecutive windows)")
    before = np.asarray([] if context is None else context, dtype=np.int64)[-block_size:]
    tokens = np.concatenate([before, np.asarray(ids, dtype=np.int64)])
    nats = np.full(len(tokens), np.log(int(model.vocab_size)))  # type: ignore[arg-type]
    windows = windows_of(len(tokens), len(before), block_size, stride)
    pending: list[tuple[list[Window], Tensor]] = []
    remembered = RecentTokens(recent) if recent else None
    with closing(run_windows(model, tokens, windows, block_size)) as run:  # an error must end inference mode too
        for batch, output, targets in run:
            losses = cross_entropy(output.logits.flatten(0, 1), targets.flatten(), "none").view_as(targets)
            if remembered is not None:
                _expect_again(remembered, batch, output.states, losses, targets)
            pending.append((batch, losses))
            if len(pending) >= (1 if losses.device.type == "cpu" else _PENDING):
                _collect(pending, nats)
                advance(batch[-1].end - len(before), len(tokens) - len(before))
    _collect(pending, nats)
    return nats[len(before) :]


def _expect_again(recent: RecentTokens, batch: list[Window], states: Tensor | None, losses: Tensor, targets: Tensor) -> None:
    """Replace the `losses` (B, T) of scored tokens by those with the recent tokens."""
    if states is None:
        raise UsageError("--recent compares states of the model, and this architecture has none: leave it out")
    for window, state, loss, target in zip(batch, states, losses, targets, strict=True):
        scored = slice(window.first_scored - window.start - 1, None)
        loss[scored] = recent.nats(state[scored], loss[scored], target[scored]).to(loss.dtype)


def _collect(pending: list[tuple[list[Window], Tensor]], out: npt.NDArray[np.float64]) -> None:
    """Bring results to the host, in float64, and put each scored token's where it belongs."""
    for windows, nats in pending:
        for window, row in zip(windows, nats.cpu().numpy(), strict=True):
            out[window.first_scored : window.end] = row[window.first_scored - window.start - 1 :]
    pending.clear()


def _positions(n_tokens: int, n_before: int, block_size: int, stride: int) -> npt.NDArray[np.int64]:
    """How many tokens of its window each token after the context is conditioned on, (n_tokens - n_before,)."""
    out = np.zeros(n_tokens, dtype=np.int64)
    for window in windows_of(n_tokens, n_before, block_size, stride):
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
    recent: int = 0
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
    nats = token_nats(model, tokens, context=context, block_size=block_size, stride=stride, recent=reader.recent, advance=reader.advance)
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


class Reading(NamedTuple):
    """A text as a model reads it."""

    ids: npt.NDArray[Any]
    parts: Parts | None = None  # to be scored; None: all of it
    context: npt.NDArray[Any] | None = None  # tokens before it


def reading_of_split(tokenizer: Tokenizer, dataset: Dataset, split: str, block_size: int) -> Reading:
    """A split of a run's own data, after the split before it."""
    tokens = dataset.split(split).tokens
    return Reading(tokens, parts_of(tokens, tokenizer, documents=dataset.in_documents), context_of(dataset, split, block_size))


def reading_of_text(tokenizer: Tokenizer, text: str, *, in_parts: bool = False) -> Reading:
    """A text; `in_parts`: conversations in their template, or documents that each end in END_OF_TEXT."""
    ids = np.asarray(tokenizer.encode(text))
    parts = parts_of(ids, tokenizer, documents=True) if in_parts else None
    return Reading(ids, parts, np.asarray([end_of_text(tokenizer)]) if parts is not None and parts.kind == "documents" else None)


def score_split(reader: Reader, dataset: Dataset, split: str) -> Score:
    """The score of a split of a run's own data, read after the split before it: what the record, `eval` and `compare` all show."""
    return score_ids(reader, **reading_of_split(reader.tokenizer, dataset, split, reader.block_size)._asdict())


def score_text(reader: Reader, text: str, *, in_parts: bool = False) -> Score:
    """The score of `text`; `in_parts`: of the answers of conversations in their template, or of documents that each end in END_OF_TEXT."""
    return score_ids(reader, **reading_of_text(reader.tokenizer, text, in_parts=in_parts)._asdict())
