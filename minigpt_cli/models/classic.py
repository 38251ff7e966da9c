"""Classic GPT: learned positions, pre-LayerNorm, multi-head causal attention, a feed-forward (of 4 times the width).

New over bigram: context. Each token reads those before it (attention) and computes on the result (feed-forward), several times;
both add to a residual stream. This is GPT-2 (Radford et al. 2019), weight for weight.
Shapes: B batch, T tokens, N tokens with those in the cache, C channels, H heads, D = C // H, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minigpt_cli.config import ClassicConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.models.attention import CausalAttention, KVCache
from minigpt_cli.models.contract import MatrixParts
from minigpt_cli.models.layers import Dropout, Embedding, FeedForward, LayerNorm, Linear
from minigpt_cli.models.transformer import Block, Transformer


class Attention(nn.Module):
    """Multi-head causal self-attention; q, k and v are one matrix, rows in that order."""

    def __init__(self, config: ClassicConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.qkv = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.attend = CausalAttention(config.dropout)
        self.out = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None, angles: None, begins: Tensor | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, N, D)
        y = self.attend(q, k, v, begins)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side
        return self.out(y)  # type: ignore[no-any-return]


class ClassicBlock(Block):
    """LayerNorm, and a feed-forward with one non-linearity."""

    def __init__(self, config: ClassicConfig, layer: int) -> None:
        super().__init__(config.dropout)
        self.norm1 = LayerNorm(config.n_embd, config.bias)
        self.attention = Attention(config, layer)
        self.norm2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = FeedForward(config.n_embd, config.hidden, config.activation, config.bias)

    def matrices(self) -> Iterator[MatrixParts]:
        yield MatrixParts(self.attention.qkv.weight, 3)
        yield MatrixParts(self.attention.out.weight, 1)
        yield MatrixParts(self.mlp.up.weight, 1)
        yield MatrixParts(self.mlp.down.weight, 1)


class Classic(Transformer):
    """GPT-2 of any size."""

    def __init__(self, config: ClassicConfig, vocab_size: int) -> None:
        blocks = [ClassicBlock(config, layer) for layer in range(config.n_layer)]
        super().__init__(config, vocab_size, blocks, LayerNorm(config.n_embd, config.bias))
        self.position_embedding = Embedding(config.block_size, config.n_embd)
        self.embedding_dropout = Dropout(config.dropout)

    def embed(self, ids: Tensor, start: int) -> Tensor:
        end = start + ids.size(1)
        if end > self.config.block_size:
            raise UsageError(f"{end} tokens are more than the {self.config.block_size} positions this model has learned: give it fewer")
        positions = torch.arange(start, end, device=ids.device)
        return self.embedding_dropout(self.token_embedding(ids) + self.position_embedding(positions))  # type: ignore[no-any-return]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal with init_std; 2 n_layer branches add up in the residual stream, so their last matrices begin smaller by its root."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
                p.normal_(0.0, self.config.init_std / (2 * self.config.n_layer) ** (0.5 * into_stream), generator=generator)
            else:
                p.fill_(1.0 if name.endswith("weight") else 0.0)  # gains and biases
