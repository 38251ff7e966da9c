"""Modern GPT: RMSNorm, rotary positions, SwiGLU, grouped-query attention, normed queries and keys.

New over classic: positions turn queries and keys instead of being added to the input (RoPE), so attention sees distances;
norms without mean or bias; a gated feed-forward; fewer key/value heads if wanted; QK-norm, which bounds attention scores.
This is Llama (Touvron et al. 2023), and with `qk_norm` Qwen3 (Yang et al. 2025), weight for weight.
Shapes: B batch, T tokens, C channels, H query heads, K key/value heads, D = C // H, F hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minigpt_cli.config import ModernConfig
from minigpt_cli.models import kernels
from minigpt_cli.models.attention import CausalAttention, KVCache, RotaryTable
from minigpt_cli.models.contract import MatrixParts
from minigpt_cli.models.layers import Dropout, Linear, RMSNorm, SwiGLU, hidden_width
from minigpt_cli.models.transformer import Transformer


class Attention(nn.Module):
    """Rotary causal self-attention; rows of `qkv` are q (H * D), k (K * D), v (K * D)."""

    def __init__(self, config: ModernConfig, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head or config.n_head
        self.head_size = config.n_embd // config.n_head
        self.qkv = Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_size, bias=False)
        # One gain for all queries and one for all keys; without QK-norm there is nothing to hold.
        self.q_norm = RMSNorm(self.head_size, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, config.rms_norm_eps) if config.qk_norm else None
        self.core = CausalAttention(self.n_head, self.n_kv_head, layer)
        self.out = Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cache: KVCache | None, rope: Tensor) -> Tensor:
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, self.n_head + 2 * self.n_kv_head, self.head_size)
        heads = kernels.norm_and_rotate(heads, self.n_head + self.n_kv_head, self._gains(), rope)  # q and k of its heads
        y: Tensor = self.out(self.core(heads, cache))  # (B, T, C)
        return y

    def _gains(self) -> kernels.Gains | None:
        """(H + K, D) gains of each query's and key's norm, and their epsilon."""
        if self.q_norm is None or self.k_norm is None:
            return None
        q = self.q_norm.weight.expand(self.n_head, -1)
        k = self.k_norm.weight.expand(self.n_kv_head, -1)
        return kernels.Gains(torch.cat((q, k)), self.q_norm.eps)


class Block(nn.Module):
    """Attention, then SwiGLU; each reads a normed copy of the residual stream and adds to it."""

    def __init__(self, config: ModernConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.n_embd, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = RMSNorm(config.n_embd, config.rms_norm_eps)
        self.mlp = SwiGLU(config.n_embd, hidden_width(config.n_embd, config.ffn_mult))
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None, rope: Tensor) -> tuple[Tensor, float]:
        x = self.dropout.add(x, self.attention(self.norm1(x), cache, rope))
        x = self.dropout.add(x, self.mlp(self.norm2(x)))
        return x, 0.0

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

    def __init__(self, config: ModernConfig, vocab_size: int) -> None:
        c = config
        blocks = [Block(c, layer) for layer in range(c.n_layer)]
        rope = RotaryTable(c.block_size, c.n_embd // c.n_head, c.rope_theta)
        super().__init__(c, vocab_size, blocks, RMSNorm(c.n_embd, c.rms_norm_eps), c.n_kv_head or c.n_head, rope)

    def init_weights(self, generator: torch.Generator) -> None:
        init_modern(self, generator)


@torch.no_grad()
def init_modern(model: Transformer, generator: torch.Generator) -> None:
    """With zero_init every block begins as the identity; otherwise as in classic. Zero branches still learn: their inputs are not zero."""
    c = model.config
    for name, p in model.named_parameters():
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
