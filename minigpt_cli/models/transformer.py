"""What classic, modern and moe share: token embedding, a stack of blocks, a final norm, an output head.

An architecture is a subclass with its blocks, its final norm and its initial weights. A block maps (x, cache, angles, begins) to
(x, auxiliary loss); angles are those of rotary positions, or None; begins says where documents begin if attention stays inside them,
or is None. plain.py shows what happens inside, and what happens without one of the parts.
Shapes: B batch, T tokens, C channels, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_cli.models.attention import KVCache, document_begins, rotary_angles
from minigpt_cli.models.contract import MatrixParts, Output
from minigpt_cli.models.layers import Dropout, Embedding, Linear


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normed copy of the residual stream and adds to it. A subclass makes the parts."""

    norm1: Any
    attention: Any
    norm2: Any
    mlp: Any
    residual = True  # False, for plain.py: the branch in place of the stream

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, cache: KVCache | None, angles: Tensor | None, begins: Tensor | None) -> tuple[Tensor, Tensor | float]:
        x = self.add(x, self.attention(self.norm1(x), cache, angles, begins))
        y, aux_loss = self.feed_forward(self.norm2(x))
        return self.add(x, y), aux_loss

    def feed_forward(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """What the block computes on each token alone, and its auxiliary loss."""
        return self.mlp(x), 0.0

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        y: Tensor = self.dropout(branch)
        return x + y if self.residual else y


class Transformer(nn.Module):
    """Token ids to next-token logits through a stack of blocks."""

    compute_dtype = torch.float32
    end_of_text: int | None = None  # the token that ends a document; if set, no token attends to earlier documents

    def __init__(self, config: Any, vocab_size: int, blocks: Iterable[nn.Module], final_norm: nn.Module, rope_theta: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.head_size: int = config.n_embd // config.n_head
        self.rope_theta = rope_theta  # 0: no rotary positions
        self.token_embedding = Embedding(vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        # A tied head has no parameter of its own: output_weight is then the embedding itself.
        self.head = None if config.tie_weights else Linear(config.n_embd, vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """(V, C): the head, or the token embedding where they are tied."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Output:
        x = self.embed(ids, 0 if cache is None else cache.length).to(self.compute_dtype)  # (B, T, C), the residual stream
        return self.from_layer(0, x, ids, cache)

    def from_layer(self, layer: int, x: Tensor, ids: Tensor, cache: KVCache | None = None) -> Output:
        """The output for ids (B, T), given the residual stream x (B, T, C) that block `layer` reads."""
        start, T = 0 if cache is None else cache.length, ids.size(1)
        angles = rotary_angles(start, T, self.head_size, self.rope_theta, ids.device) if self.rope_theta else None
        # What a cache holds is one document.
        begins = None if self.end_of_text is None or cache is not None else document_begins(ids, self.end_of_text)
        aux_loss = torch.zeros((), device=x.device)
        for block in islice(self.blocks, layer, None):
            x, aux = block(x, cache, angles, begins)
            aux_loss = aux_loss + aux
        if cache is not None:
            cache.length += T
        x = self.final_norm(x)
        logits = F.linear(x, self.output_weight.to(x.dtype)) if self.head is None else self.head(x)  # (B, T, V)
        return Output(logits, aux_loss, x)

    def embed(self, ids: Tensor, start: int) -> Tensor:
        """(B, T, C) for ids (B, T) whose first stands at position `start`."""
        x: Tensor = self.token_embedding(ids)
        return x

    def new_cache(self, batch_size: int, max_tokens: int) -> KVCache:
        c, device = self.config, self.token_embedding.weight.device
        shape = (c.n_layer, batch_size, c.kv_heads, max_tokens, self.head_size)
        return KVCache(shape, dtype=self.compute_dtype, device=device)

    def matrices(self) -> Iterator[MatrixParts]:
        for block in self.blocks:
            yield from cast(Any, block).matrices()

    def n_active_params(self) -> int:
        return sum(p.numel() for p in self.parameters())
