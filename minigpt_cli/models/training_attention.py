"""Causal attention for training on a CPU: the same numbers as the plain formula, with less memory traffic and less of the upper half.

Where the processor multiplies bfloat16 tiles (Intel AMX) all of it is one C function, native/attention.c. Elsewhere, and in float32:

attention.CausalAttention's plain path is the formula: `dropout(softmax(q kᵀ / sqrt(D) + mask)) v`. What is different here:

- The batch goes through in chunks whose scores fit the cache, so that scores are written, normalised, dropped and used there.
- Queries go in up to four blocks, and a block sees no keys after itself: of the masked upper half most is never computed.
- Kept for the backward pass are probabilities and one byte per dropout decision; the rest is computed again from q, k, v.

Shapes: B batch, T tokens, H query heads, K key/value heads, R = H // K queries per key, D head size; b a chunk of the batch,
t = end - start the queries of a block, e = end the keys that it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigpt_cli.models.dropout import draw_mask, draw_seed, zeroed
from minigpt_cli.models.native import operations as native

CHUNK_BYTES = 2 << 20  # of scores: about one core's second-level cache
MOST_BLOCKS, LEAST_BLOCK = 4, 64


class _Piece(NamedTuple):
    """One block of queries of one chunk, and where its probabilities are kept."""

    rows: slice  # of the batch
    start: int
    end: int
    kept: slice  # of the flat probabilities
    groups: int  # of the dropout mask's hash, before this piece
    shape: tuple[int, int, int]  # of the probabilities: (b * K, R * t, e)


def causal_attention(heads: Tensor, n_head: int, dropout: float, generator: torch.Generator | None) -> Tensor:
    """Attention of q, k, v, which are the heads of (B, T, H + 2K, D) in that order: (B, T, H * D)."""
    keep, mask = None, native.Mask(0, 0, 1.0)
    if dropout and native.usable(heads):
        mask = draw_seed(dropout, generator)
    elif dropout:
        size = sum(p.shape[0] * p.shape[1] * p.shape[2] for p in _pieces(heads, n_head))
        keep, scale = draw_mask((size,), dropout, generator, heads.device)
        mask = native.Mask(0, 0, scale)
    if native.tiles_usable(heads):
        return native.TiledAttention.apply(heads, n_head, mask)  # type: ignore[no-any-return,no-untyped-call]
    return _CausalAttention.apply(heads, n_head, keep, mask)  # type: ignore[no-any-return,no-untyped-call]


def _pieces(heads: Tensor, n_head: int) -> Iterator[_Piece]:
    """Chunk by chunk, last block first: it sees every key, so that its gradients of k and v cover all of them."""
    B, T, all_heads, _ = heads.shape
    n_kv_head = (all_heads - n_head) // 2
    b = max(1, CHUNK_BYTES // (n_head * T * T * heads.element_size()))
    t = max(LEAST_BLOCK, -(-T // MOST_BLOCKS))
    at = groups = 0
    for first in range(0, B, b):
        rows = slice(first, min(first + b, B))
        for start in reversed(range(0, T, t)):
            end = min(start + t, T)
            shape = ((rows.stop - first) * n_kv_head, n_head // n_kv_head * (end - start), end)
            size = shape[0] * shape[1] * shape[2]
            yield _Piece(rows, start, end, slice(at, at + size), groups, shape)
            at += size
            groups += native.hash_groups(shape)


class _Chunk:
    """q, k and v of some rows of the batch, laid out for batched matrix products."""

    def __init__(self, heads: Tensor, n_head: int, piece: _Piece) -> None:
        x = heads[piece.rows]
        b, T, all_heads, D = x.shape
        K = (all_heads - n_head) // 2
        self.queries = x[:, :, :n_head].view(b, T, K, n_head // K, D)
        self.k, self.v = x[:, :, n_head:].view(b, T, 2, K, D).permute(2, 0, 3, 1, 4).reshape(2, b * K, T, D)

    def q(self, piece: _Piece) -> Tensor:
        """(b * K, R * t, D), scaled."""
        return _by_key(self.queries[:, piece.start : piece.end], self.k.size(-1) ** -0.5)


def _by_key(x: Tensor, scale: float) -> Tensor:
    """(b, t, K, R, D) to a new (b * K, R * t, D), scaled on the way."""
    b, t, K, R, D = x.shape
    result = x.new_empty(b, K, R, t, D)
    torch.mul(x.permute(0, 2, 3, 1, 4), scale, out=result)
    return result.view(b * K, R * t, D)


def _by_token(x: Tensor, like: Tensor) -> Tensor:
    """(b * K, R * t, D) seen as `like`, (b, t, K, R, D)."""
    b, t, K, R, D = like.shape
    return x.view(b, K, R, t, D).permute(0, 3, 1, 2, 4)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, n_head: int, keep: Tensor | None, mask: native.Mask) -> Tensor:
        B, T, all_heads, D = heads.shape
        K = (all_heads - n_head) // 2
        pieces = list(_pieces(heads, n_head))
        probabilities = heads.new_empty(pieces[-1].kept.stop)
        result = heads.new_empty(B, T, K, n_head // K, D)
        for piece in pieces:
            if piece.end == T:
                chunk = _Chunk(heads, n_head, piece)
            t = piece.end - piece.start
            scores = torch.bmm(chunk.q(piece), chunk.k[:, : piece.end].mT)  # (b K, R t, e)
            p = _softmax(scores, probabilities, piece, t, keep, mask)
            out = result[piece.rows, piece.start : piece.end]
            y = torch.bmm(p, chunk.v[:, : piece.end])
            torch.mul(_by_token(y, out), mask.scale, out=out)
        ctx.save_for_backward(heads, probabilities, keep)
        ctx.n_head, ctx.mask = n_head, mask
        return result.view(B, T, n_head * D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        heads, probabilities, keep = ctx.saved_tensors
        n_head, mask = ctx.n_head, ctx.mask
        B, T, all_heads, D = heads.shape
        K = (all_heads - n_head) // 2
        grad = grad.view(B, T, K, n_head // K, D)
        result = torch.empty_like(heads)
        for piece in _pieces(heads, n_head):
            if piece.end == T:
                chunk = _Chunk(heads, n_head, piece)
                d_kv = torch.empty(2, *chunk.k.shape, dtype=heads.dtype)
            g = _by_key(grad[piece.rows, piece.start : piece.end], mask.scale)  # (b K, R t, D)
            d_p = torch.bmm(g, chunk.v[:, : piece.end].mT)  # (b K, R t, e)
            dropped, d_scores = _softmax_back(d_p, probabilities, piece, keep, mask)
            _add(d_kv[:, :, : piece.end], torch.bmm(d_scores.mT, chunk.q(piece)), torch.bmm(dropped.mT, g), first=piece.end == T)
            out = result[piece.rows, piece.start : piece.end, :n_head].view(-1, piece.end - piece.start, K, n_head // K, D)
            torch.mul(_by_token(torch.bmm(d_scores, chunk.k[:, : piece.end]), out), D**-0.5, out=out)
            if piece.start == 0:
                b = piece.rows.stop - piece.rows.start
                result[piece.rows, :, n_head:].view(b, T, 2, K, D).copy_(d_kv.view(2, b, K, T, D).permute(1, 3, 0, 2, 4))
        return result, None, None, None


def _softmax(scores: Tensor, probabilities: Tensor, piece: _Piece, t: int, keep: Tensor | None, mask: native.Mask) -> Tensor:
    """Causal softmax of scores (b K, R t, e) into `probabilities`; what v multiplies: without what dropout takes. Overwrites scores."""
    p = probabilities[piece.kept].view(piece.shape)
    if native.usable(scores):
        native.softmax_forward(scores, p, piece.start, t, piece.groups, mask)
        return scores if mask.threshold else p
    future = scores.new_full((t, t), float("-inf")).triu_(1)
    scores.view(-1, piece.shape[1] // t, t, piece.end)[..., piece.start :].add_(future)
    torch.softmax(scores, dim=-1, out=p)
    return p if keep is None else zeroed(p, keep[piece.kept].view(piece.shape), out=scores)


def _softmax_back(d_p: Tensor, probabilities: Tensor, piece: _Piece, keep: Tensor | None, mask: native.Mask) -> tuple[Tensor, Tensor]:
    """The probabilities without what dropout took, and the gradient of the scores; d_p is of the former. Overwrites d_p."""
    p = probabilities[piece.kept].view(piece.shape)
    if native.usable(d_p):
        dropped = torch.empty_like(p) if mask.threshold else p
        native.softmax_backward(p, d_p, dropped, piece.start, piece.end - piece.start, piece.groups, mask)
        return dropped, d_p
    dropped = p
    if keep is not None:
        bits = keep[piece.kept].view(piece.shape)
        dropped, d_p = zeroed(p, bits), zeroed(d_p, bits, out=d_p)
    return dropped, torch._softmax_backward_data(d_p, p, -1, p.dtype)


def _add(d_kv: Tensor, d_k: Tensor, d_v: Tensor, first: bool) -> None:
    for total, part in zip(d_kv, (d_k, d_v), strict=True):
        if first:
            total.copy_(part)
        else:
            total.add_(part)
