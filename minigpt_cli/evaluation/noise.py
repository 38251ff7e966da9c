"""How large an improvement must be to be more than noise: `--min-delta auto`. NumPy only.

Two evaluations of one run look at the same text, so what matters is not how uncertain each loss is (much: some texts are
harder) but how uncertain their difference is (little), by blocks of text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minigpt_cli.evaluation.statistics import block_length, deviations

_ONE_SIDED_95 = 0.95


def improvement_noise(reference: npt.ArrayLike, current: npt.ArrayLike) -> float:
    """By how much the mean of `current` must lie below that of `reference` (nats of the same tokens) for it to be an improvement
    on new text of the kind too, with 95 % confidence. 0 where they are equal; infinite where either is not finite."""
    difference = np.asarray(reference, dtype=np.float64) - np.asarray(current, dtype=np.float64)
    if not len(difference) or not np.isfinite(difference).all():
        return float("inf")
    return max(0.0, float(np.quantile(deviations(difference, block_length(difference), 1000), _ONE_SIDED_95)))
