"""Causal attention that never has all of its scores at once: the results of models/attention.py with less memory and traffic.

On a GPU this is torch's fused attention ("sdpa"). On a CPU ("plain") one C function, attention.c, computes everything; where there is no
compiler, the plain formula does, or torch's fused attention for a context that needs too much memory.

Shapes: B batch, T tokens, C channels, H query heads, K key/value heads, D head size. `heads` (B, T, H + 2K, D) are q, k, v in that order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt_cli.accel import kernels
from minigpt_cli.models import attention as textbook
from minigpt_cli.models import classic, modern
from minigpt_cli.models.attention import KVCache

MOST_SCORES = 1 << 26  # numbers that the plain formula may write at once: 256 MB in float32


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

    def in_c(self, x: Tensor) -> bool:
        """Whether `among` can compute attention over x (B, T, C)."""
        return self.path == "plain" and kernels.attention_usable(x)

    def among(self, heads: Tensor, n_head: int, begins: Tensor | None = None) -> Tensor:
        """(B, T, H * D): attention of `heads` among themselves, each from the token `begins` (B, T) on, in C."""
        p = self.dropout.p if self.training else 0.0
        mask = kernels.draw_dropout_mask(p, self.dropout.generator) if p else kernels.NO_DROPOUT
        return kernels.Attention.apply(heads, n_head, mask, begins)  # type: ignore[no-any-return,no-untyped-call]


class ClassicAttention(classic.Attention):
    attend: CausalAttention

    def forward(self, x: Tensor, cache: KVCache | None, angles: None, begins: Tensor | None) -> Tensor:
        if cache is not None or not self.attend.in_c(x):
            return super().forward(x, cache, angles, begins)
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, 3 * self.n_head, C // self.n_head)
        y: Tensor = self.out(self.attend.among(heads, self.n_head, begins))  # (B, T, C)
        return y


class ModernAttention(modern.Attention):
    attend: CausalAttention

    def forward(self, x: Tensor, cache: KVCache | None, angles: Tensor, begins: Tensor | None) -> Tensor:
        if cache is not None or not self.attend.in_c(x):
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
        y: Tensor = self.out(self.attend.among(heads, H, begins))  # (B, T, C)
        return y
