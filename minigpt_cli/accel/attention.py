"""Causal attention that never has all of its scores at once: the results of models/attention.py with less memory and traffic.

On a GPU, and for a context that needs too much memory, this is torch's fused attention ("sdpa"). On a CPU with small head sizes that is
slow, and the plain formula is made fast ("plain"). If the processor multiplies bfloat16 tiles (Intel AMX), one C function computes
everything: attention.c. On other processors, and in float32:

- The batch is computed in chunks whose scores fit the cache, so that they are written, normalised, dropped and used there.
- Queries are computed in up to four blocks, each with the keys up to its end, so that most of the masked half is never computed.
- Probabilities are kept for the backward pass; the rest is computed again from q, k, v.

Shapes: B batch, T tokens, C channels, H query heads, K key/value heads, R = H // K queries per key, D head size; b a chunk of the
batch, t = end - start the queries of a block, e = end the keys that it sees. `heads` (B, T, H + 2K, D) are q, k, v in that order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt_cli.accel import kernels
from minigpt_cli.accel.kernels import LONGEST, DropoutMask
from minigpt_cli.models import attention as textbook
from minigpt_cli.models import classic, modern
from minigpt_cli.models.attention import KVCache

MOST_SCORES = 1 << 26  # numbers that the plain formula may write at once: 256 MB in float32
CHUNK_BYTES = 2 << 20  # of scores: about one core's second-level cache
MOST_BLOCKS, LEAST_BLOCK = 4, 64


class CausalAttention(textbook.CausalAttention):
    """The formula, or torch's fused kernel: by `path`, and for a long context, whose scores would need too much memory."""

    path = "plain"  # or "sdpa"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None = None) -> Tensor:
        (B, H, T, _), (K, N) = q.shape, k.shape[1:3]
        p = self.dropout.p if self.training else 0.0  # the fused kernel draws from torch's default generator: it takes no other
        if self.path == "plain" and (B * H * T * N <= MOST_SCORES or p):
            return super().forward(q, k, v, begins)
        mask = None  # of the keys that are seen
        if begins is not None:
            mask = ~(textbook.is_future(T, N, q.device) | textbook.is_earlier(begins, N))
        elif 1 < T < N:
            mask = ~textbook.is_future(T, N, q.device)
        causal = mask is None and T > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal, enable_gqa=K < H)

    def goes_in_chunks(self, x: Tensor, n_head: int) -> bool:
        """Whether `in_chunks` can compute attention over x (B, T, C)."""
        B, T = x.shape[:2]
        keeps = torch.is_grad_enabled() or (self.training and self.dropout.p > 0)  # else the fused kernel is better for a long context
        return self.path == "plain" and T <= LONGEST and kernels.usable(x) and (keeps or B * n_head * T * T <= MOST_SCORES)

    def in_chunks(self, heads: Tensor, n_head: int, begins: Tensor | None = None) -> Tensor:
        """(B, T, H * D): attention of `heads` among themselves, each from the token `begins` (B, T) on."""
        p = self.dropout.p if self.training else 0.0
        mask = kernels.draw_dropout_mask(p, self.dropout.generator) if p else kernels.NO_DROPOUT
        function = kernels.TiledAttention if kernels.tiles_usable(heads) else ChunkedAttention
        return function.apply(heads, n_head, mask, begins)  # type: ignore[no-any-return,no-untyped-call]


class ClassicAttention(classic.Attention):
    attend: CausalAttention

    def forward(self, x: Tensor, cache: KVCache | None, angles: None, begins: Tensor | None) -> Tensor:
        if cache is not None or not self.attend.goes_in_chunks(x, self.n_head):
            return super().forward(x, cache, angles, begins)
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, 3 * self.n_head, C // self.n_head)
        y: Tensor = self.out(self.attend.in_chunks(heads, self.n_head, begins))  # (B, T, C)
        return y


class ModernAttention(modern.Attention):
    attend: CausalAttention

    def forward(self, x: Tensor, cache: KVCache | None, angles: Tensor, begins: Tensor | None) -> Tensor:
        if cache is not None or not self.attend.goes_in_chunks(x, self.n_head):
            return super().forward(x, cache, angles, begins)
        (B, T, _), H, K = x.shape, self.n_head, self.n_kv_head
        heads = self.qkv(x).view(B, T, H + 2 * K, self.head_size)
        if kernels.usable(heads, self.head_size // 2):
            gains, eps = None, 0.0
            if self.q_norm is not None and self.k_norm is not None:  # one gain for all queries, one for all keys: (H + K, D)
                gains, eps = torch.cat((self.q_norm.weight.expand(H, -1), self.k_norm.weight.expand(K, -1))), self.q_norm.eps
            heads = kernels.NormAndRotate.apply(heads, H + K, gains, eps, angles)  # type: ignore[no-untyped-call]
        else:
            q, k, v = heads.split((H, K, K), dim=2)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q), self.k_norm(k)
            by_token = angles.unsqueeze(2)  # (2, T, 1, D / 2)
            heads = torch.cat((textbook.rotate(q, by_token), textbook.rotate(k, by_token), v), dim=2)
        y: Tensor = self.out(self.attend.in_chunks(heads, H, begins))  # (B, T, C)
        return y


# ---- the batch in chunks


class _Piece(NamedTuple):
    """One block of queries of one chunk, and the place of its probabilities."""

    rows: slice  # of the batch
    start: int
    end: int
    kept: slice  # of the flat probabilities
    groups: int  # of the dropout mask's hash, before this piece
    shape: tuple[int, int, int]  # of the probabilities: (b * K, R * t, e)


def _pieces(heads: Tensor, n_head: int) -> Iterator[_Piece]:
    """Chunk by chunk, last block first: it sees every key, so its gradients of k and v have all rows."""
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
            groups += kernels.hash_groups(shape)


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


class ChunkedAttention(torch.autograd.Function):
    """Attention of `heads` among themselves, each from the token `begins` on: (B, T, H * D). A hidden key has probability zero, so that
    the backward pass needs no `begins`."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, n_head: int, mask: DropoutMask, begins: Tensor | None) -> Tensor:
        B, T, all_heads, D = heads.shape
        K = (all_heads - n_head) // 2
        pieces = list(_pieces(heads, n_head))
        probabilities = heads.new_empty(pieces[-1].kept.stop)
        result = heads.new_empty(B, T, K, n_head // K, D)
        for piece in pieces:
            if piece.end == T:
                chunk = _Chunk(heads, n_head, piece)
            scores = torch.bmm(chunk.q(piece), chunk.k[:, : piece.end].mT)  # (b K, R t, e)
            p = _softmax(scores, probabilities, piece, mask, begins)
            out = result[piece.rows, piece.start : piece.end]
            y = torch.bmm(p, chunk.v[:, : piece.end])
            torch.mul(_by_token(y, out), mask.scale, out=out)
        ctx.save_for_backward(heads, probabilities)
        ctx.n_head, ctx.mask = n_head, mask
        return result.view(B, T, n_head * D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        heads, probabilities = ctx.saved_tensors
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
            dropped, d_scores = _softmax_back(d_p, probabilities, piece, mask)
            _add(d_kv[:, :, : piece.end], torch.bmm(d_scores.mT, chunk.q(piece)), torch.bmm(dropped.mT, g), first=piece.end == T)
            out = result[piece.rows, piece.start : piece.end, :n_head].view(-1, piece.end - piece.start, K, n_head // K, D)
            torch.mul(_by_token(torch.bmm(d_scores, chunk.k[:, : piece.end]), out), D**-0.5, out=out)
            if piece.start == 0:
                b = piece.rows.stop - piece.rows.start
                result[piece.rows, :, n_head:].view(b, T, 2, K, D).copy_(d_kv.view(2, b, K, T, D).permute(1, 3, 0, 2, 4))
        return result, None, None, None


def _softmax(scores: Tensor, probabilities: Tensor, piece: _Piece, mask: DropoutMask, begins: Tensor | None) -> Tensor:
    """Causal softmax of scores (b K, R t, e), written to `probabilities`; the result has dropout too. Overwrites scores."""
    p = probabilities[piece.kept].view(piece.shape)
    of_queries = None if begins is None else begins[piece.rows, piece.start : piece.end].contiguous()
    kernels.softmax_forward(scores, p, slice(piece.start, piece.end), piece.groups, mask, of_queries)
    return scores if mask.threshold else p


def _softmax_back(d_p: Tensor, probabilities: Tensor, piece: _Piece, mask: DropoutMask) -> tuple[Tensor, Tensor]:
    """The probabilities after dropout, and the gradient of the scores, from the gradient d_p of the first. Overwrites d_p."""
    p = probabilities[piece.kept].view(piece.shape)
    dropped = torch.empty_like(p) if mask.threshold else p
    kernels.softmax_backward(p, d_p, dropped, slice(piece.start, piece.end), piece.groups, mask)
    return dropped, d_p


def _add(d_kv: Tensor, d_k: Tensor, d_v: Tensor, first: bool) -> None:
    for total, part in zip(d_kv, (d_k, d_v), strict=True):
        if first:
            total.copy_(part)
        else:
            total.add_(part)
