"""What a bet gives to each of its options, and what it costs: -ln p of what happened, the loss that trains a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = {2: 0.60, 3: 0.80, 4: 0.95}  # what the chosen option gets; 1: all options alike


def shares(options: Sequence[str], chosen: int, confidence: int) -> dict[str, float]:
    """The probability of each option: the chosen one gets what the confidence says, the others share the rest."""
    if confidence not in CONFIDENCE:
        return {option: 1 / len(options) for option in options}
    rest = (1 - CONFIDENCE[confidence]) / (len(options) - 1)
    return {option: CONFIDENCE[confidence] if i == chosen else rest for i, option in enumerate(options)}


def cost(p: float) -> float:
    """The loss of a bet, in nats, that gave p to what happened."""
    return -math.log(p)


def cost_sentence(p: float, n: int) -> str:
    """What a bet cost beside a guess among n options."""
    return f"You gave {100 * p:.3g}% to this, so your bet costs −ln {p:.3g} = {cost(p):.2f} nats; a guess costs {math.log(n):.2f}."
