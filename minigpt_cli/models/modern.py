"""Modern GPT: RMSNorm, rotary positions, SwiGLU, grouped-query attention, normed queries and keys.

New over classic: positions turn queries and keys instead of being added to the input (RoPE), so attention sees distances;
norms without mean or bias; a gated feed-forward; fewer key/value heads if wanted; QK-norm, which bounds attention scores.
This is Llama (Touvron et al. 2023), and with `qk_norm` Qwen3 (Yang et al. 2025), weight for weight.
Shapes: B batch, T tokens, N tokens with those in the cache, C channels, H query heads, K key/value heads, D = C // H, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minigpt_cli.config import ModernConfig
from minigpt_cli.models.attention import CausalAttention, KVCache, rotate
from minigpt_cli.models.contract import MatrixParts
from minigpt_cli.models.layers import Linear, RMSNorm, SwiGLU
from minigpt_cli.models.transformer import Block, Transformer


class Attention(nn.Module):
    """Rotary causal self-attention; rows of `qkv` are q (H * D), k (K * D), v (K * D)."""

    def __init__(self, config: ModernConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head = config.n_head, config.kv_heads
        self.head_size = config.n_embd // config.n_head
        self.qkv = Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_size, bias=False)
        # One gain for all queries and one for all keys; without QK-norm there is nothing to hold.
        self.q_norm = RMSNorm(self.head_size, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, config.rms_norm_eps) if config.qk_norm else None
        self.attend = CausalAttention()
        self.out = Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cache: KVCache | None, angles: Tensor, begins: Tensor | None) -> Tensor:
        (B, T, C), (H, K) = x.shape, (self.n_head, self.n_kv_head)
        heads = self.qkv(x).view(B, T, H + 2 * K, self.head_size).transpose(1, 2)
        q, k, v = heads.split((H, K, K), dim=1)  # (B, H, T, D), (B, K, T, D), (B, K, T, D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, N, D)
        y = self.attend(q, k, v, begins)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side
        return self.out(y)  # type: ignore[no-any-return]


class ModernBlock(Block):
    """RMSNorm and SwiGLU."""

    def __init__(self, config: ModernConfig, layer: int) -> None:
        super().__init__(config.dropout)
        self.norm1 = RMSNorm(config.n_embd, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = RMSNorm(config.n_embd, config.rms_norm_eps)
        self.mlp = SwiGLU(config.n_embd, config.hidden)

    def matrices(self) -> Iterator[MatrixParts]:
        yield from attention_matrices(self.attention)
        yield MatrixParts(self.mlp.gate_up.weight, 2)
        yield MatrixParts(self.mlp.down.weight, 1)


def attention_matrices(attention: Attention) -> Iterator[MatrixParts]:
    """qkv in parts as tall as k and v are (q is H // K of them), and the output projection."""
    yield MatrixParts(attention.qkv.weight, attention.n_head // attention.n_kv_head + 2)
    yield MatrixParts(attention.out.weight, 1)


class Modern(Transformer):
    """Llama or Qwen3 of any size."""

    block_class: type[nn.Module] = ModernBlock

    def __init__(self, config: ModernConfig, vocab_size: int) -> None:
        blocks = [self.block_class(config, layer) for layer in range(config.n_layer)]
        super().__init__(config, vocab_size, blocks, RMSNorm(config.n_embd, config.rms_norm_eps), config.rope_theta)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """With zero_init every block begins as the identity, else as in classic. Zero branches still learn: their inputs are not zero."""
        c = self.config
        for name, p in self.named_parameters():
            into_stream = name.endswith(("attention.out.weight", "mlp.down.weight", "moe.down"))
            if p.dim() == 1:
                p.fill_(1.0)  # gains
            elif not c.zero_init or name.endswith("router.weight") or (c.tie_weights and name == "token_embedding.weight"):
                p.normal_(0.0, c.init_std / (2 * c.n_layer) ** (0.5 * into_stream), generator=generator)
            elif name == "token_embedding.weight":
                p.normal_(0.0, 1.0, generator=generator)
            elif into_stream or name == "head.weight":
                p.zero_()
            else:
                bound = c.n_embd**-0.5
                p.uniform_(-bound, bound, generator=generator)
