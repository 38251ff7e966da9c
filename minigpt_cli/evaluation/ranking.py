"""Which runs are statistically tied with the first of the leaderboard, and recipes ranked by their seeds. No torch, and quick: it reads a
few kilobytes of each run.

Every run is compared with the first of its text over the same stretches of text (paired), and the p-values are adjusted
(Holm) for how many runs are compared. The first is first partly by luck, but the truly best run is among the tied rows
with 95 % confidence all the same (multiple comparisons with the best: Hsu 1984).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation.cache import find_cells
from minigpt_cli.evaluation.recipes import observations, recipe_of
from minigpt_cli.evaluation.seeds import group_of
from minigpt_cli.evaluation.statistics import Floats, holm, quick_p_values
from minigpt_cli.evaluation.targets import Target, score_key
from minigpt_cli.leaderboard import intervals_overlap, rank, text_sha256
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


@dataclass(frozen=True)
class Folded:
    """One recipe on the leaderboard: its seeds in one row."""

    rank: int
    runs: list[str]
    n: int
    nats_per_char: float  # mean over seeds
    standard_error: float | None  # None for one seed
    arch: str
    n_params: int
    text_sha256: str


def fold(runs: Sequence[Run]) -> tuple[list[Folded], list[tuple[Run, Run]]]:
    """A row for each recipe, best first, each text apart; and the runs that are not counted because they repeat another, with that one."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.record.best is not None:
            groups[text_sha256(run), _recipe_or_name(run)].append(run)
    rows, repeats = [], []
    for (text, _), group in groups.items():
        own, again = observations(group)
        repeats += again
        seeds = group_of([run.record.best.nats_per_char for run in own if run.record.best])
        first = own[0].record
        rows.append(Folded(0, [run.name for run in own], seeds.n, seeds.mean, seeds.std_error, first.arch, first.n_params, text))
    ranked = []
    for text in dict.fromkeys(row.text_sha256 for row in rank(runs)):  # the text of the newest run first
        ordered = sorted((row for row in rows if row.text_sha256 == text), key=lambda row: row.nats_per_char)
        ranked += [replace(row, rank=position) for position, row in enumerate(ordered, 1)]
    return ranked, repeats


def _recipe_or_name(run: Run) -> str:
    """The run's recipe; where its configuration cannot be read, one of its own."""
    try:
        return recipe_of(run)
    except MiniGPTError:
        return f"unreadable {run.name}"
