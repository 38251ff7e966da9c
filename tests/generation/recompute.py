"""The reference for every decoder: no cache at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from minigpt_cli.generation.decoders.contract import Logits
from minigpt_cli.generation.sampling import choose


class RecomputingDecoder:
    """Runs the model over all of its context again at every step, as its `forward` does in training."""

    name = "recompute"
    greedy_slack = 0.0
    choose = staticmethod(choose)

    def __init__(self, model: Any, slots: int = 1) -> None:
        self.model = model
        self.vocab_size: int = model.vocab_size
        self.window: int = model.config.block_size
        self.endless = False
        self.slots = slots
        self._ids: list[list[int]] = [[] for _ in range(slots)]

    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        self._ids[slot][start:] = ids
        with torch.no_grad():
            logits: Logits = self.model(torch.tensor([self._ids[slot]])).logits[0, -1].float().numpy()
        return logits

    def exact(self, ids: Sequence[int]) -> Logits:
        return self.extend(0, ids, 0)

    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        return np.stack([self.extend(slot, [token], at) for token, slot, at in zip(ids, slots, positions, strict=True)])

    def copy(self, source: int, target: int, length: int) -> None:
        self._ids[target] = self._ids[source][:length]
