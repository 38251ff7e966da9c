"""Causal attention: each token takes a weighted mean of the values of the tokens up to itself.

Here are the formulas that architectures share: attention with its masks, rotary positions, and the cache of keys and values.
Sources: attention (Vaswani et al. 2017), RoPE (Su et al. 2021; rotated halves as Hugging Face's Llama has them, not GPT-J's
interleaved pairs), grouped-query attention (Ainslie et al. 2023).
Shapes: B batch, T new tokens, S tokens in the cache before them, N = S + T keys, H query heads, K key/value heads
(H is a multiple of K), D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.models.layers import Dropout


class CausalAttention(nn.Module):
    """softmax(q kᵀ / √D + mask) v."""

    causal = True  # False, for plain.py: a token sees those after it too
    scaled = True  # False, for plain.py: without the division by √D

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)  # of attention weights

    def forward(self, q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None = None) -> Tensor:
        """(B, H, T, D) for q (B, H, T, D) and k, v (B, K, N, D); the T queries are the last of the N tokens.

        With `begins` (B, T), query t does not see the keys before token begins[t], where its document begins."""
        (H, T, D), (K, N) = q.shape[1:], k.shape[1:3]
        if K < H:  # each key and value serves H // K queries
            k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)  # (B, H, N, D)
        scores = (q @ k.mT) * (D**-0.5 if self.scaled else 1.0)  # (B, H, T, N)
        hidden = is_future(T, N, q.device) & self.causal  # (T, N)
        if begins is not None:
            hidden = hidden | is_earlier(begins, N)  # (B, 1, T, N)
        scores = scores.masked_fill(hidden, float("-inf"))
        weights: Tensor = self.dropout(F.softmax(scores, dim=-1))
        return weights @ v  # (B, H, T, D)


def is_future(T: int, N: int, device: torch.device) -> Tensor:
    """(T, N): whether key n comes after query t, which is token N - T + t."""
    return torch.ones(T, N, dtype=torch.bool, device=device).triu(N - T + 1)


def is_earlier(begins: Tensor, N: int) -> Tensor:
    """(B, 1, T, N): whether key n comes before the document of query t, which begins at token begins[t]."""
    return torch.arange(N, device=begins.device) < begins[:, None, :, None]


def document_begins(ids: Tensor, end_of_text: int) -> Tensor:
    """(B, T): where the document of each token begins in its window of ids (B, T).

    The token that ends a text is read as the first of the next document, because generation starts with it too."""
    positions = torch.arange(ids.size(1), device=ids.device)
    return torch.where(ids == end_of_text, positions, 0).cummax(dim=1).values


def rotary_angles(start: int, length: int, head_size: int, theta: float, device: torch.device) -> Tensor:
    """cos and sin, (2, length, D / 2), of the angle by which each position from `start` turns each pair of channels."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size)  # (D / 2,)
    positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)  # (length, D / 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """x (B, H, T, D) with each pair of channels (d, d + D / 2) turned by its position's angle (RoPE)."""
    cos, sin = angles  # float32
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, one buffer each for all layers, allocated once.

    keys and values: (layers, B, K, max_tokens, D). Only the first `length` tokens are meaningful.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.max_tokens = shape[3]
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
