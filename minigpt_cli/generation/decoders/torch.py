"""The torch decoder: the model's forward pass with a cache of keys and values, for any architecture on any device.

It decodes without a C library, on a GPU, and for architectures that C does not know. Each slot has its own cache and is stepped
alone. One step for 16 slots together is about ten times as fast, but every row then differs by rounding (up to 7e-7 here), which
top-k, top-p and a router turn into another token now and then: a sample would depend on the batch.
A model without a cache reads its whole context again for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minigpt_cli.generation.decoders.contract import Logits
from minigpt_cli.generation.sampling import choose
from minigpt_cli.models.attention import KVCache
from minigpt_cli.models.transformer import Transformer


class SlidingCache(KVCache):
    """A cache without an end: once it is full, a new token replaces the oldest. The order of keys does not matter to its query."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.length < self.max_tokens:
            return super().extend(layer, k, v)
        oldest = self.length % self.max_tokens
        self.keys[layer, :, :, oldest] = k[:, :, 0]
        self.values[layer, :, :, oldest] = v[:, :, 0]
        return self.keys[layer], self.values[layer]


class TorchDecoder:
    """A decoder of any model that keeps the contract of models/contract.py."""

    name = "torch"
    greedy_slack = 1e-5
    choose = staticmethod(choose)

    def __init__(self, model: Any, slots: int = 1) -> None:
        self.model = model
        self.vocab_size: int = model.vocab_size
        self.window: int = model.config.block_size
        self.slots = slots
        self.endless = isinstance(model, Transformer) and model.rope_theta > 0 and model.new_cache(1, 1) is not None
        self._device = next(model.parameters()).device
        self._caches: list[Any] = [None] * slots
        self._ids: list[list[int]] = [[] for _ in range(slots)]  # of models without a cache

    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        if start == 0:
            self._caches[slot] = self._caches[slot] or self._new_cache()
            if self._caches[slot] is not None:
                self._caches[slot].reset()
        if self._caches[slot] is None:
            self._ids[slot][start:] = ids
            return self.exact(self._ids[slot])
        return self._logits(ids, self._caches[slot])

    def exact(self, ids: Sequence[int]) -> Logits:
        return self._logits(ids)

    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        return np.stack([self.extend(slot, [token], at) for token, slot, at in zip(ids, slots, positions, strict=True)])

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        self._ids[target] = self._ids[source][:length]
        if source != target and self._caches[source] is not None:
            self._caches[target] = self._caches[target] or self._new_cache()
            self._caches[target].keys.copy_(self._caches[source].keys)
            self._caches[target].values.copy_(self._caches[source].values)
            self._caches[target].length = length

    @torch.inference_mode()
    def _logits(self, ids: Sequence[int], *cache: Any) -> Logits:
        """Logits (V,) after `ids`, which follow what the cache holds."""
        output = self.model(torch.tensor([list(ids)], device=self._device), *cache)
        logits: Logits = output.logits[0, -1].float().cpu().numpy()
        return logits

    @torch.inference_mode()
    def _new_cache(self) -> Any:
        if not self.endless:
            return self.model.new_cache(1, self.window)
        c = self.model.config
        shape = (c.n_layer, 1, c.kv_heads, self.window, self.model.head_size)
        return SlidingCache(shape, dtype=self.model.compute_dtype, device=self._device)
