"""Causal attention: each token takes a weighted mean of the values of the tokens up to itself.

Here are the parts that architectures share: the attention core, rotary positions and the key/value cache.
Sources: attention (Vaswani et al. 2017), RoPE (Su et al. 2021; rotated halves as Hugging Face's Llama has them, not GPT-J's
interleaved pairs), grouped-query attention (Ainslie et al. 2023).
Shapes: B batch, T new tokens, S tokens in the cache before them, N = S + T keys, H query heads, K key/value heads
(H is a multiple of K), D head size.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.models import kernels
from minigpt_cli.models.layers import Dropout
from minigpt_cli.models.native.operations import LONGEST
from minigpt_cli.models.training_attention import causal_attention

AttentionPath = Literal["plain", "sdpa"]

_MOST_SCORES = 1 << 26  # numbers that "plain" may write down at once: 256 MB at float32


class CausalAttention(nn.Module):
    """The core without weights: q, k and v, the heads of (B, T, H + 2K, D) in that order, to (B, T, H * D).

    `path` chooses how: "plain" is two batched matrix products around a softmax, the fastest on CPUs at small head sizes;
    "sdpa" is torch's fused kernel, the fastest on GPUs and the leanest in memory everywhere.
    """

    def __init__(self, n_head: int, n_kv_head: int, layer: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.layer = n_head, n_kv_head, layer
        self.path: AttentionPath = "plain"
        self.dropout = Dropout(dropout)  # of attention weights

    def forward(self, heads: Tensor, cache: KVCache | None = None) -> Tensor:
        H, K, (B, T) = self.n_head, self.n_kv_head, heads.shape[:2]
        # A long context read in one go would need memory by its square; masks from a generator are plain's alone.
        many = B * H * T * (T if cache is None else cache.length + T) > _MOST_SCORES and not self.dropout.active
        in_pieces = cache is None and heads.device.type == "cpu" and T <= LONGEST and not torch.compiler.is_compiling()
        if self.path == "plain" and in_pieces and (kernels.by_hand(heads) or not many):
            p = self.dropout.p if self.dropout.active else 0.0
            return causal_attention(heads, self.n_head, p, self.dropout.generator)
        q, k, v = torch.split(heads.transpose(1, 2), [H, K, K], dim=1)  # (B, H, T, D), (B, K, T, D) twice
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, N, D)
        y = self._sdpa(q, k, v) if self.path == "sdpa" or many else self._plain(q, k, v)  # (B, H, T, D)
        return y.transpose(1, 2).flatten(2)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (B, H, T, D), (K, N) = q.shape, k.shape[1:3]
        q = (q * D**-0.5).reshape(B, K, H // K * T, D)  # the H // K heads that share a key become more rows of one product
        scores = (q @ k.mT).view(B, H, T, N)
        if T > 1:
            scores = scores + future_mask(T, N, q.dtype, q.device)
        weights = self.dropout(F.softmax(scores, dim=-1))
        return torch.matmul(weights.view(B, K, H // K * T, N), v).view(B, H, T, D)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (H, T), (K, N) = q.shape[1:3], k.shape[1:3]
        mask = future_mask(T, N, q.dtype, q.device) if 1 < T < N else None
        # Its dropout draws from torch's default generator: it takes no other.
        p = self.dropout.p if self.dropout.active else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=T == N and T > 1, enable_gqa=K < H)


def future_mask(T: int, N: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(T, N): 0 where query t, the (N - T + t)-th token, may look; -inf at the tokens after it."""
    return torch.full((T, N), float("-inf"), dtype=dtype, device=device).triu_(N - T + 1)


class RotaryTable(nn.Module):
    """cos and sin of every position times every frequency, computed once for all layers; theta is the base of the frequencies."""

    table: Tensor  # (2, positions, 1, D) float32, one row for all heads: cos, twice the D / 2 frequencies; -sin, then sin

    def __init__(self, positions: int, head_size: int, theta: float) -> None:
        super().__init__()
        self.positions, self.head_size, self.theta = positions, head_size, theta
        self.register_buffer("table", torch.empty(2, positions, 1, head_size), persistent=False)
        if not self.table.is_meta:  # in a mere outline there is nothing to compute, and torch would import for a second to do so
            self._fill()

    def _fill(self) -> None:
        device, D = self.table.device, self.head_size
        frequencies = self.theta ** (-torch.arange(0, D, 2, dtype=torch.float32, device=device) / D)  # (D / 2,)
        angles = torch.outer(torch.arange(self.positions, dtype=torch.float32, device=device), frequencies)
        sin = angles.sin()
        self.table = torch.stack((angles.cos().repeat(1, 2), torch.cat((-sin, sin), dim=1))).unsqueeze(2)

    def forward(self, start: int, length: int, dtype: torch.dtype) -> Tensor:
        """(2, length, 1, D) for the positions from `start`; grows beyond the block, where nothing is learned but rotation goes on."""
        if start + length > self.positions:
            self.positions = 2 * (start + length)
            self._fill()
        table: Tensor = self.table[:, start : start + length].to(dtype)
        return table


class KVCache:
    """Keys and values of the tokens seen so far, one buffer each for all layers, allocated once.

    keys and values: (layers, B, K, max_tokens, D). Only the first `length` tokens are meaningful.
    """

    def __init__(
        self, n_layer: int, batch_size: int, n_kv_head: int, max_tokens: int, head_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (n_layer, batch_size, n_kv_head, max_tokens, head_size)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.max_tokens = max_tokens
        self.length = 0

    def reset(self) -> None:
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, K, T, D) behind what `layer` holds; views (B, K, length + T, D) of all. The model moves `length`."""
        end = self.length + k.size(2)
        if end > self.max_tokens:
            raise MiniGPTError(f"the cache holds {self.max_tokens} tokens and {end} were given: ask new_cache for more")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
