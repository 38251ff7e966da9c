"""What classic, modern and moe share: embedding, blocks, final norm, head, and the switches that training turns.

An architecture is a subclass that hands over its blocks and final norm, and says how weights begin. A block maps
(x, cache, rope) to (x, aux_loss).
Shapes: B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigpt_cli.models.attention import AttentionPath, CausalAttention, KVCache, RotaryTable
from minigpt_cli.models.contract import MatrixParts, Output
from minigpt_cli.models.layers import Dropout, Embedding, Linear


class Transformer(nn.Module):
    """Token ids to next-token logits through a stack of blocks."""

    def __init__(
        self,
        config: Any,
        vocab_size: int,
        blocks: Iterable[nn.Module],
        final_norm: nn.Module,
        n_kv_head: int,
        rope: RotaryTable | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.n_kv_head = n_kv_head
        self.token_embedding = Embedding(vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.rope = rope
        # A tied head has no parameter of its own: output_weight is then the embedding itself.
        self.head = None if config.tie_weights else Linear(config.n_embd, vocab_size, bias=False)
        self.compute_dtype: torch.dtype | None = None
        self.grad_checkpoint = False

    @property
    def output_weight(self) -> Tensor:
        """(V, C): the head, or the token embedding where they are tied."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Output:
        start = cache.length if cache is not None else 0
        x = self.embed(ids, start).to(self.compute_dtype)  # (B, T, C)
        rope = self.rope(start, ids.size(1), x.dtype) if self.rope is not None else None
        aux_loss = torch.zeros((), device=x.device)
        for block in self.blocks:
            x, aux = self._run(block, x, cache, rope)
            aux_loss = aux_loss + aux
        if cache is not None:
            cache.length += ids.size(1)
        logits = F.linear(self.final_norm(x), self.output_weight.to(x.dtype))  # (B, T, V)
        return Output(logits, aux_loss)

    def embed(self, ids: Tensor, start: int) -> Tensor:
        """(B, T, C) for ids (B, T) whose first stands at position `start`."""
        x: Tensor = self.token_embedding(ids)
        return x

    def new_cache(self, batch_size: int, max_tokens: int) -> KVCache:
        c, weight = self.config, self.token_embedding.weight
        dtype = self.compute_dtype or weight.dtype
        return KVCache(c.n_layer, batch_size, self.n_kv_head, max_tokens, c.n_embd // c.n_head, dtype=dtype, device=weight.device)

    def matrices(self) -> Iterator[MatrixParts]:
        for block in self.blocks:
            yield from cast(Any, block).matrices()

    def n_active_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    # ---- switches

    def set_attention(self, path: AttentionPath) -> None:
        """Compute attention by "plain" matrix products or by torch's fused "sdpa"."""
        for module in self.modules():
            if isinstance(module, CausalAttention):
                module.path = path

    def set_compute_dtype(self, dtype: torch.dtype | None) -> None:
        """Compute activations and products in `dtype`; parameters, and so gradients, keep theirs. None: the parameters' dtype."""
        self.compute_dtype = dtype

    def set_dropout_generator(self, generator: torch.Generator | None) -> None:
        """Draw every dropout mask from `generator`, which lives on the model's device."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator

    def set_grad_checkpoint(self, on: bool) -> None:
        """Keep only each block's input for the backward pass, and compute the block again there."""
        self.grad_checkpoint = on

    def _run(self, block: nn.Module, x: Tensor, cache: KVCache | None, rope: Tensor | None) -> tuple[Tensor, Tensor | float]:
        if not (self.grad_checkpoint and self.training and torch.is_grad_enabled()):
            return block(x, cache, rope)  # type: ignore[no-any-return]
        generator = next((m.generator for m in block.modules() if isinstance(m, Dropout)), None)
        # Of its default generator, from which fused attention and compiled dropout draw, torch takes care itself.
        replayed: dict[str, Any] = {} if generator is None else {"context_fn": _same_masks(generator)}
        return checkpoint(block, x, cache, rope, use_reentrant=False, **replayed)  # type: ignore[no-any-return]


def _same_masks(generator: torch.Generator) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Contexts for a block's first and second computation: the second starts `generator` where the first did, then puts it back."""

    @contextmanager
    def replay(state: Tensor) -> Iterator[None]:
        now = generator.get_state()
        generator.set_state(state)
        try:
            yield
        finally:
            generator.set_state(now)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), replay(generator.get_state())

    return contexts
