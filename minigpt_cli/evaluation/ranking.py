"""Which runs cannot be told from the first of the leaderboard. No torch, and quick: it reads a few kilobytes of each run.

Every run is compared with the first of its text over the same stretches of text (paired), and the p-values are adjusted
(Holm) for how many runs are compared. The first is first partly by luck, but the truly best run is among the tied rows
with 95 % confidence all the same (multiple comparisons with the best: Hsu 1984).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation.cache import find_cells
from minigpt_cli.evaluation.statistics import Floats, holm, quick_p_values
from minigpt_cli.evaluation.targets import Target, score_key
from minigpt_cli.leaderboard import intervals_overlap, text_sha256
from minigpt_cli.runstore import Run

LEVEL = 0.05


def ties(runs: Sequence[Run]) -> Callable[[Run, Run], bool]:
    """For `leaderboard.rank`: whether another run cannot be told from the first. Where scores are not kept, whether intervals overlap."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.record.best is not None:
            groups[text_sha256(run)].append(run)
    told: dict[tuple[str, str], bool] = {}
    for group in groups.values():
        first = min(group, key=lambda r: (r.record.best.nats_per_char, r.record.n_params, r.name))  # type: ignore[union-attr]
        told |= {(first.name, name): tied for name, tied in _tied_with(first, [run for run in group if run.name != first.name]).items()}

    def tied(first: Run, other: Run) -> bool:
        known = told.get((first.name, other.name))
        return intervals_overlap(first, other) if known is None else known

    return tied


def _tied_with(first: Run, others: Sequence[Run]) -> dict[str, bool]:
    """Whether each other run whose kept score can be paired with the first's is tied with it, by name."""
    best = _cells(first)
    if best is None:
        return {}
    paired = [(run.name, cells) for run in others if (cells := _cells(run)) is not None and len(cells) == len(best)]
    if not paired:
        return {}
    p_values = holm(quick_p_values(np.stack([cells for _, cells in paired]) - best).tolist())
    return {name: p >= LEVEL for (name, _), p in zip(paired, p_values, strict=True)}


def _cells(run: Run) -> Floats | None:
    try:
        found = find_cells(run.dir, score_key(run, Target()))
    except MiniGPTError:
        return None
    return None if found is None else found[1]
