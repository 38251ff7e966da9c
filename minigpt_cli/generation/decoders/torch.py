"""The plain path: the model's own forward with its own cache, for any architecture and any device.

Each slot has a cache of its own, so slots are stepped one after the other. When a cache is full the slot begins anew with
its newest tokens, whatever the kind of positions. A model without a cache reads all of its context anew for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from minigpt_cli.generation.decoders.contract import Logits
from minigpt_cli.generation.sampling import choose


class TorchDecoder:
    """Any model that keeps the contract of models/contract.py."""

    name = "torch"
    endless = False
    greedy_slack = draw_slack = 0.0  # each row is computed alone
    choose = staticmethod(choose)

    def __init__(self, model: Any, slots: int = 1) -> None:
        self.model = model
        self.vocab_size: int = model.vocab_size
        self.window: int = model.config.block_size
        self.slots = slots
        self._device = next(model.parameters()).device
        self._caches: list[Any] = [None] * slots
        self._ids: list[list[int]] = [[] for _ in range(slots)]  # of models without a cache

    @torch.inference_mode()
    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        if start == 0:
            self._caches[slot] = self._caches[slot] or self.model.new_cache(1, self.window)
            if self._caches[slot] is not None:
                self._caches[slot].reset()
        if (cache := self._caches[slot]) is None:
            self._ids[slot][start:] = ids
            output = self.model(torch.tensor([self._ids[slot]], device=self._device))
        else:
            output = self.model(torch.tensor([list(ids)], device=self._device), cache)
        logits: Logits = output.logits[0, -1].float().cpu().numpy()
        return logits

    def exact(self, ids: Sequence[int]) -> Logits:
        raise NotImplementedError("asked for only where choices may have to be made anew")

    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        return np.stack([self.extend(slot, [token], at) for token, slot, at in zip(ids, slots, positions, strict=True)])

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        self._ids[target] = self._ids[source][:length]
        if source != target and self._caches[source] is not None:
            self._caches[target] = self._caches[target] or self.model.new_cache(1, self.window)
            self._caches[target].keys.copy_(self._caches[source].keys)
            self._caches[target].values.copy_(self._caches[source].values)
            self._caches[target].length = length
