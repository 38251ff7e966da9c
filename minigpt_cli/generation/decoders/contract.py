"""What a decoder promises: next-token logits of several sequences, each kept in its own slot.

The logits of a slot do not depend, to the bit, on the other slots. They have rounding errors: of weights in fewer bits, or of
sums in another order. A greedy choice that those errors could change is made again from `exact` logits, so that greedy text is
the text of full recomputation.

A slot holds the keys and values of one sequence. Positions count from 0 in each slot. With rotary positions a sequence has no
end, and each token sees the `window` before it. With learned positions (`endless` False) a sequence ends at `window`, and the
engine starts the slot again with the newest tokens.
Shapes: R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from minigpt_cli.generation.sampling import Sampling

Logits = npt.NDArray[np.float32]


class Decoder(Protocol):
    """Next-token logits from cached keys and values. An array that was returned is valid until the next call."""

    name: str  # as it is shown: "native int16", "torch"
    vocab_size: int
    window: int  # tokens that the next one can see
    endless: bool
    slots: int
    greedy_slack: float  # a greedy choice is made again if its two largest logits differ by less than this times the largest; 0: never

    def choose(
        self, logits: npt.NDArray[Any], sampling: Sampling, uniforms: npt.NDArray[np.float64], seen: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """As sampling.choose."""

    def exact(self, ids: Sequence[int]) -> Logits:
        """Logits (V,) after `ids` (at most `window`), in float32, computed in one pass."""

    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        """Logits (V,) after `ids`, which follow the `start` tokens that the slot holds; at most `window` in all."""

    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        """Logits (R, V) after one more token in each of R slots, at the given positions."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the same first `length` tokens as `source`."""
