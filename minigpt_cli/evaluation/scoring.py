"""Nats of every token, and of every character, of a text under a model. The one place where a score is made.

Protocol: the text is cut into consecutive windows of `block_size` tokens, as such models are usually evaluated; a token
is conditioned on what precedes it in its window, and the first of a window on the last token before it. With `stride` N
windows overlap and only the last N tokens of each are scored, so that every token sees at least block_size - N + 1
tokens before it. Without any text before, the very first token costs log V: nothing is known about it.
Conversations are read whole, and their answers alone are scored, as they alone are learned; each of several documents follows an
end of text (data/parts.py says which tokens these are).
B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import Parts, end_of_text, parts_of
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.evaluation.characters import per_character, spelled, token_lengths
from minigpt_cli.evaluation.eval_target import BEFORE
from minigpt_cli.evaluation.scores import PartsScored, Score, make_score
from minigpt_cli.tokenization.contract import Tokenizer

__all__ = ["Score", "score_ids", "score_split", "score_text", "token_nats"]

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
    device: str | torch.device | None = None,
    batch_tokens: int | None = None,
    autocast: torch.dtype | None = None,
) -> npt.NDArray[np.float64]:
    """Nats of each of `ids` under the model, (len(ids),), given those before it and `context`, the tokens before them all.

    float32 unless `autocast` names another type. The model is evaluated (no dropout) and left in the mode it came in.
    Not finite where the model's logits are not. Raises UsageError for an impossible stride.
    """
    if not 0 <= stride <= block_size:
        raise UsageError(f"--stride {stride} is outside 1 to {block_size}, the model's block size (0: consecutive windows)")
    tokens = np.asarray(ids)
    before = np.zeros(0, dtype=np.int64) if context is None else np.asarray(context)[-block_size:]
    place = torch.device(device) if device is not None else next(model.parameters()).device
    out = np.empty(len(tokens), dtype=np.float64)
    pending: list[tuple[list[_Window], Tensor]] = []
    tokens_at_once = block_size * batch_rows(block_size, getattr(model, "vocab_size", 1))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _precision(place, autocast):
            for windows, inputs, targets in _batches(tokens, before, block_size, stride, batch_tokens or tokens_at_once):
                x = torch.from_numpy(inputs).to(place, non_blocking=True)  # (B, T)
                y = torch.from_numpy(targets).to(place, non_blocking=True)  # (B, T)
                logits = model(x).logits  # (B, T, V)
                if len(out) and not len(before) and windows[0].first_scored == 1:
                    out[0] = np.log(logits.shape[-1])
                pending.append((windows, F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="none").view_as(y)))
                if len(pending) >= _PENDING:
                    _collect(pending, out)
            _collect(pending, out)
    finally:
        model.train(was_training)
    if len(tokens) == 1 and not len(before):
        out[0] = np.log(_vocab_size(model))
    return out


def batch_rows(block_size: int, vocab_size: int) -> int:
    """Windows in one batch where nothing else is said."""
    return max(1, min(_TOKENS, _LOGITS // vocab_size) // block_size)


@contextlib.contextmanager
def _precision(place: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Exact float32 products (no TF32, no bfloat16 passes, whatever training chose), or autocast to the type asked for."""
    chosen = torch.get_float32_matmul_precision()
    cast = torch.autocast(place.type, dtype=autocast) if autocast else torch.autocast(place.type, enabled=False)
    try:
        if autocast is None:
            torch.set_float32_matmul_precision("highest")
        with cast:
            yield
    finally:
        torch.set_float32_matmul_precision(chosen)


class _Window:
    """One window: the tokens `first_scored` to `end` of the text, the last ones of it, are scored."""

    __slots__ = ("end", "first_scored", "start")

    def __init__(self, start: int, first_scored: int, end: int) -> None:
        self.start, self.first_scored, self.end = start, first_scored, end  # start: in the text with its context before


def _windows(n_tokens: int, n_before: int, block_size: int, stride: int) -> Iterator[_Window]:
    """Cut: positions count from the first of `ids`, so context is negative. Without context, scoring begins at token 1."""
    position = 0 if n_before else 1
    step = stride or block_size
    while position < n_tokens:
        start = max(-n_before, min(position + step, n_tokens) - 1 - block_size) if stride else position - 1
        end = min(start + block_size + 1, n_tokens)
        yield _Window(start, position, end)
        position = end


def _batches(
    tokens: npt.NDArray[Any], before: npt.NDArray[Any], block_size: int, stride: int, batch_tokens: int
) -> Iterator[tuple[list[_Window], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Windows of equal length together, at most `batch_tokens` tokens at once; a shorter one goes alone."""
    rows = max(1, batch_tokens // block_size)
    group: list[_Window] = []
    for window in _windows(len(tokens), len(before), block_size, stride):
        if group and (len(group) == rows or window.end - window.start != group[0].end - group[0].start):
            yield group, *_cut(tokens, before, group)
            group = []
        group.append(window)
    if group:
        yield group, *_cut(tokens, before, group)


def _cut(tokens: npt.NDArray[Any], before: npt.NDArray[Any], group: list[_Window]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Inputs and targets of the windows, (B, T) each; targets are the inputs one token later."""
    rows = np.stack([_slice(tokens, before, window.start, window.end) for window in group])  # (B, T + 1)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def _slice(tokens: npt.NDArray[Any], before: npt.NDArray[Any], start: int, end: int) -> npt.NDArray[np.int64]:
    if start >= 0:
        return tokens[start:end].astype(np.int64)
    return np.concatenate([before[start:] if end >= 0 else before[start:end], tokens[: max(end, 0)]]).astype(np.int64)


def _collect(pending: list[tuple[list[_Window], Tensor]], out: npt.NDArray[np.float64]) -> None:
    """Bring results to the host, in float64, and put each scored token's where it belongs."""
    for windows, nats in pending:
        host = nats.cpu().numpy()  # (B, T)
        for window, row in zip(windows, host, strict=True):
            out[window.first_scored : window.end] = row[window.first_scored - window.start - 1 :]
    pending.clear()


def _vocab_size(model: nn.Module) -> int:
    size = getattr(model, "vocab_size", None)
    if not isinstance(size, int):
        raise MiniGPTError("the model does not say its vocab_size: a text of one token cannot be scored")
    return size


def score_ids(
    model: nn.Module,
    tokenizer: Tokenizer,
    ids: npt.ArrayLike,
    *,
    parts: Parts | None = None,
    context: npt.ArrayLike | None = None,
    block_size: int,
    stride: int = 0,
    device: str | torch.device | None = None,
    batch_tokens: int | None = None,
    autocast: torch.dtype | None = None,
) -> Score:
    """The score of a text given as its token ids; of its `parts` alone, where it has them.

    Raises MiniGPTError if the ids are not whole text or the score is not finite, UsageError if there is nothing to score.
    """
    tokens = np.asarray(ids)
    if not len(tokens):
        raise UsageError("there is no text to score: the file or split is empty")
    pieces = tokenizer.token_bytes()
    text = spelled(tokens, pieces).encode()
    if int(tokens.max()) >= (known := getattr(model, "vocab_size", len(pieces))):
        raise MiniGPTError(f"token {int(tokens.max())} is beyond the model's vocabulary of {known}: this tokenizer is not the model's")
    nats = token_nats(
        model, tokens, context=context, block_size=block_size, stride=stride, device=device, batch_tokens=batch_tokens, autocast=autocast
    )
    if not np.isfinite(nats).all():
        raise MiniGPTError("the model's loss on this text is not finite: its weights are damaged, or it diverged")
    lengths = token_lengths(pieces)[tokens]
    in_window = _positions(len(tokens), 0 if context is None else len(np.asarray(context)), block_size, stride)
    if parts is not None:
        return _score_parts(tokenizer, tokens, parts, nats, in_window, text)
    char_nats, begun_by = per_character(nats, lengths, text)
    return make_score(nats, char_nats, in_window[begun_by], text)


def _score_parts(
    tokenizer: Tokenizer,
    tokens: npt.NDArray[Any],
    parts: Parts,
    nats: npt.NDArray[np.float64],
    in_window: npt.NDArray[np.int64],
    whole: bytes,
) -> Score:
    """The score of the parts of a text whose tokens cost `nats`; what the end of a part costs is added to the token before it."""
    own = np.flatnonzero(parts.scored)  # (n,) tokens of parts
    said = ~parts.marks[own]
    if not said.any():
        raise UsageError(f"the {parts.kind} hold no text, so nothing can be scored: use longer ones")
    before = np.maximum.accumulate(np.where(said, np.arange(len(own)), -1))  # (n,) the token that each mark's nats are added to
    cost = np.bincount(np.where(before < 0, said.argmax(), before), weights=nats[own], minlength=len(own))[said]
    words, pieces = own[said], tokenizer.token_bytes()
    text = spelled(tokens[words], pieces).encode()
    char_nats, begun_by = per_character(cost, token_lengths(pieces)[tokens[words]], text)
    first = np.searchsorted(begun_by, np.searchsorted(words, parts.starts))  # character of each part
    ends_nats = float(nats[own][~said].sum())
    return make_score(
        nats[own],
        char_nats,
        in_window[words[begun_by]],
        text,
        parts=PartsScored(parts.kind, first.astype(np.int64), ends_nats),
        text_sha256=hashlib.sha256(whole).hexdigest(),
    )


def score_split(
    model: nn.Module,
    tokenizer: Tokenizer,
    dataset: Dataset,
    split: str,
    *,
    block_size: int,
    stride: int = 0,
    device: str | torch.device | None = None,
) -> Score:
    """The score of a split of a run's own data, read after the split before it: what the record, `eval` and `compare` all say of it."""
    tokens, before = dataset.split(split).tokens, BEFORE.get(split)
    parts = parts_of(tokens, tokenizer, documents=dataset.n_documents > 1)
    if parts is not None and parts.kind == "documents":
        context: Any = [end_of_text(tokenizer)]
    else:
        context = dataset.split(before).tokens[-block_size:] if before else None
    return score_ids(model, tokenizer, tokens, parts=parts, context=context, block_size=block_size, stride=stride, device=device)


def _positions(n_tokens: int, n_before: int, block_size: int, stride: int) -> npt.NDArray[np.int64]:
    """How many tokens of its window each token is conditioned on, (n_tokens,)."""
    out = np.zeros(n_tokens, dtype=np.int64)
    for window in _windows(n_tokens, min(n_before, block_size), block_size, stride):
        out[window.first_scored : window.end] = np.arange(window.first_scored - window.start, window.end - window.start)
    return out


def score_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    text: str,
    *,
    in_parts: bool = False,
    before: str = "",
    block_size: int,
    stride: int = 0,
    device: str | torch.device | None = None,
    batch_tokens: int | None = None,
    autocast: torch.dtype | None = None,
) -> Score:
    """The score of `text`, conditioned on the text `before` it (of which only the end is used); `in_parts`, of the answers of conversations
    in their template, or of documents that each end in END_OF_TEXT."""
    context = tokenizer.encode(before[-16 * block_size :]) if before else None
    ids = tokenizer.encode(text)
    how = {"block_size": block_size, "stride": stride, "device": device, "batch_tokens": batch_tokens, "autocast": autocast}
    parts = parts_of(ids, tokenizer, documents=True) if in_parts else None
    if parts is not None and parts.kind == "documents" and context is None:
        context = np.array([end_of_text(tokenizer)])
    return score_ids(model, tokenizer, ids, parts=parts, context=context, **how)  # type: ignore[arg-type]
