"""The bigram decoder: the logits after a token are its row of the table. It needs NumPy alone and no cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minigpt_cli.generation.decoders.contract import Logits
from minigpt_cli.generation.decoders.weights import DecoderWeights
from minigpt_cli.generation.sampling import choose


class BigramDecoder:
    """A decoder of a bigram model, whose weights have the table (V, V) as `embedding`."""

    name = "table"
    endless = True
    greedy_slack = 0.0
    choose = staticmethod(choose)

    def __init__(self, weights: DecoderWeights, slots: int = 1) -> None:
        self.vocab_size, self.window, self.slots = weights.vocab_size, weights.block_size, slots
        self._table = weights.embedding

    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        row: Logits = self._table[ids[-1]]
        return row

    def exact(self, ids: Sequence[int]) -> Logits:
        return self.extend(0, ids, 0)

    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        rows: Logits = self._table[np.asarray(ids)]
        return rows

    def copy(self, source: int, target: int, length: int) -> None: ...
