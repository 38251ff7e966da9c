"""Mixture of experts: the modern block with several feed-forwards, of which a router gives each token a few.

New over modern: more parameters at the same work per token. A token goes to its top-k experts by router probability, and their
outputs are summed, weighted by those probabilities. They come from the softmax over *all* experts: over the chosen ones alone a
single weight would be the constant 1 and teach the router nothing. Load is balanced by an auxiliary loss (Switch Transformer,
Fedus et al. 2021) or by a bias on the choice alone (Wang et al. 2024, DeepSeek-V3).
This is Mixtral (Jiang et al. 2024), Qwen3-MoE or Qwen2-MoE, by `moe_norm_topk` and `qk_norm`.
Shapes: B batch, T tokens, N = B * T, C channels, E experts, k of them per token, F hidden width of one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minigpt_cli.config import MoEConfig
from minigpt_cli.models.contract import MatrixParts
from minigpt_cli.models.layers import Linear, RMSNorm, swiglu
from minigpt_cli.models.modern import Attention, Modern, attention_matrices
from minigpt_cli.models.transformer import Block

BIAS_STEP = 1e-3  # DeepSeek-V3's; router probabilities are around 1 / E


class Experts(nn.Module):
    """A router and E SwiGLU experts: x (B, T, C) to (y (B, T, C), auxiliary loss). Every token is served: there is no capacity."""

    balance_bias: Tensor  # (E,) float32

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        E, C, F = config.n_experts, config.n_embd, config.hidden
        self.router = Linear(C, E, bias=False)
        # Experts are stacked along the rows, so that every matrix in the model has two dimensions.
        self.gate_up = nn.Parameter(torch.empty(E * 2 * F, C))
        self.down = nn.Parameter(torch.empty(E * C, F))
        self.register_buffer("balance_bias", torch.zeros(E), persistent=config.moe_balance == "bias")
        self._probs: Tensor | None = None  # (N, E) of the last training pass
        self._counts: Tensor | None = None  # (E,) of the same

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c, flat = self.config, x.reshape(-1, x.size(-1))  # (N, C)
        probs = self.route(flat)  # (N, E)
        chosen = (probs.detach() + self.balance_bias).topk(c.moe_top_k, dim=-1).indices  # (N, k)
        weights = probs.gather(-1, chosen)
        if c.moe_norm_topk:
            weights = weights / weights.sum(-1, keepdim=True)
        counts = torch.bincount(chosen.flatten(), minlength=c.n_experts)  # (E,)
        if self.training:
            self._probs, self._counts = probs.detach(), counts
        y = self.mix(flat, chosen, weights)
        return y.view_as(x), self._aux_loss(probs, counts)

    def route(self, x: Tensor) -> Tensor:
        """How likely each expert is for each row of x (N, C): (N, E), float32."""
        probs: Tensor = self.router(x).float().softmax(-1)
        return probs

    def mix(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The sum over each token's experts, chosen (N, k), of weight (N, k) times their output: (N, C)."""
        E, C = self.config.n_experts, x.size(-1)
        gate_up, down = self.gate_up.to(x.dtype).view(E, -1, C), self.down.to(x.dtype).view(E, C, -1)
        y = torch.zeros_like(x)
        for expert in range(E):
            token, nth = (chosen == expert).nonzero(as_tuple=True)  # the pairs that chose this expert
            output = swiglu(x[token] @ gate_up[expert].T) @ down[expert].T  # (n, C) -> (n, 2F) -> (n, F) -> (n, C)
            y = y.index_add(0, token, output * weights[token, nth, None].to(x.dtype))
        return y

    def _aux_loss(self, probs: Tensor, counts: Tensor) -> Tensor:
        """E times the sum over experts of share of tokens times mean probability: 1 when balanced (Switch, equation 4)."""
        if self.config.moe_balance != "aux":
            return probs.new_zeros(())
        share = counts / counts.sum()
        loss: Tensor = self.config.moe_aux_loss_coef * self.config.n_experts * (share * probs.mean(0)).sum()
        return loss

    # ---- statistics of the last training pass; they are tensors, so that nothing waits for the device until they are read

    def expert_load(self) -> Tensor:
        """(E,) each expert's share of the token-expert pairs; equal before the first pass."""
        if self._counts is None:
            return torch.full_like(self.balance_bias, 1 / self.config.n_experts)
        return torch.div(self._counts, self._counts.sum())

    def router_entropy(self) -> Tensor:
        """Mean over tokens of the entropy of the router's choice, nats: log E is undecided, 0 is certain."""
        if self._probs is None:
            return torch.full((), self.config.n_experts, device=self.balance_bias.device).log()
        entropy: Tensor = torch.special.entr(self._probs).sum(-1).mean()
        return entropy

    @torch.no_grad()
    def update_bias(self, load: Tensor, kept: Tensor | float = 1.0) -> None:
        """For moe_balance="bias": make experts with more than the mean load (E,) a little less likely to be chosen, the others more.
        `kept` 0 leaves the bias unchanged."""
        self.balance_bias += BIAS_STEP * ((load.mean() - load).sign() * kept)


class MoEBlock(Block):
    """The modern block with experts for its feed-forward."""

    def __init__(self, config: MoEConfig, layer: int) -> None:
        super().__init__(config.dropout)
        self.norm1 = RMSNorm(config.n_embd, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = RMSNorm(config.n_embd, config.rms_norm_eps)
        self.moe = Experts(config)

    def feed_forward(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        return self.moe(x)  # type: ignore[no-any-return]

    def matrices(self) -> Iterator[MatrixParts]:
        yield from attention_matrices(self.attention)
        yield MatrixParts(self.moe.gate_up, 2 * self.moe.config.n_experts)
        yield MatrixParts(self.moe.down, self.moe.config.n_experts)


class MixtureOfExperts(Modern):
    """Mixtral, Qwen3-MoE or Qwen2-MoE of any size."""

    block_class = MoEBlock

    def n_active_params(self) -> int:
        idle: float = 1 - self.config.moe_top_k / self.config.n_experts
        experts: int = sum(p.numel() for m in self.modules() if isinstance(m, Experts) for p in (m.gate_up, m.down))
        everything: int = sum(p.numel() for p in self.parameters())
        return everything - round(idle * experts)
