"""What a decoder promises: next-token logits of several sequences, each kept in its own slot.

Logits carry rounding errors: of reduced-precision weights, or of sums whose order depends on the batch. A choice narrower than
those errors is made anew from `exact` logits, which depend on the sequence's tokens alone. So what is written does not depend
on the batch, and greedy text is that of full recomputation.

A slot holds the keys and values of one sequence. Positions count from 0 in each slot. A decoder with rotary positions goes
on for ever, each token seeing the `window` before it; one with learned positions (`endless` False) ends at `window`, and
whoever drives it starts the slot anew with the newest tokens.
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
    """Logits, a token at a time, from cached keys and values. Results are valid until the next call."""

    name: str  # for people: "native int16", "torch"
    vocab_size: int
    window: int  # tokens that the next one can see
    endless: bool
    slots: int
    greedy_slack: float  # greedy choices whose logits differ by less than this, times the largest, are made anew; 0: none
    draw_slack: float  # drawn choices that are nearer to a neighbour's probability than this are made anew; 0: none

    def choose(
        self, logits: npt.NDArray[Any], sampling: Sampling, uniforms: npt.NDArray[np.float64], seen: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """As sampling.choose."""

    def exact(self, ids: Sequence[int]) -> Logits:
        """Logits (V,) after `ids` (at most `window`), in float32 and computed in one way whatever else is decoded."""

    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        """Logits (V,) after `ids`, which follow the `start` tokens that the slot holds; at most `window` in all."""

    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        """Logits (R, V) after one more token in each of R slots, at the given positions."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the same first `length` tokens as `source`."""
