"""Which run is best: rows ranked from records and kept scores, statistical ties marked. No torch; it reads a few kilobytes of each run.

Runs are ranked by the nats per character of their best checkpoint, separately for each validation text. Every run is compared with the
first run of its text over the same stretches of text (paired), and the p-values are adjusted (Holm) for how many runs are compared. The
first run is first partly by luck, but with 95 % confidence the truly best run is among the tied rows (multiple comparisons with the best:
Hsu 1984).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict

from minigpt_cli.errors import MiniGPTError, UsageError, unknown_name
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best
from minigpt_cli.runstore.store import by_text

if TYPE_CHECKING:
    from minigpt_cli.evaluation.statistics import Floats

LEVEL = 0.05
_RECORDED = ("arch", "tokenizer", "stop_step", "n_params", "n_active_params", "tokens_seen", "elapsed_s", "text_sha256")  # of a row
_AMOUNTS = {"tokens": "tokens_seen", "seconds": "elapsed_s"}


class Row(BaseModel):
    """One line of the leaderboard."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    rank: int
    run: str
    arch: str
    tokenizer: str
    nats_per_char: float
    ci95: tuple[float, float] | None
    val_loss: float  # nats per token
    best_step: int
    stop_step: int
    n_params: int
    n_active_params: int
    tokens_seen: int
    elapsed_s: float
    status: str
    text_sha256: str
    tied_with_best: bool


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


AnyRow = TypeVar("AnyRow", Row, Folded)


def rank(runs: Iterable[Run], *, with_ties: bool = True) -> list[Row]:
    """Scored runs, best first within each text; the text of the most recently saved run comes first. Without `with_ties` only the first
    of each text is marked as tied with the best."""
    rows: list[Row] = []
    for first, *others in by_text(runs):
        tied = {first.name} | (_tied_with(first, others) if with_ties else set())
        rows += [_row(position, run, run.name in tied) for position, run in enumerate([first, *others], 1)]
    return rows


def _row(position: int, run: Run, tied_with_best: bool) -> Row:
    record = run.record
    best = record.best
    assert best is not None
    recorded = {name: getattr(record, name) for name in _RECORDED}
    return Row(
        rank=position,
        run=run.name,
        nats_per_char=best.nats_per_char,
        ci95=best.ci95,
        val_loss=best.nats_per_token,
        best_step=best.step,
        status=run.status,
        tied_with_best=tied_with_best,
        **recorded,
    )


def overlap(best: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    """Whether two scores' intervals overlap, that of the better one first: a cautious test where no paired test is possible."""
    return bool(best and other and other[0] <= best[1])


def paired_ties(best: Floats, others: Mapping[str, Floats]) -> set[str]:
    """Which of `others` are statistically tied with the best, by their mean nats over the same cells of one text."""
    import numpy as np

    from minigpt_cli.evaluation.statistics import holm, quick_p_values

    p_values = holm(quick_p_values(np.stack(list(others.values())) - best).tolist()) if others else []
    return {name for name, p in zip(others, p_values, strict=True) if p >= LEVEL}


def _tied_with(first: Run, others: Sequence[Run]) -> set[str]:
    """Names of the runs that are statistically tied with the first: by a paired test of the kept scores, else by the intervals."""
    from minigpt_cli.evaluation.cache import find_cells
    from minigpt_cli.evaluation.eval_target import Target, score_key

    def cells(run: Run) -> Floats | None:
        try:
            return find_cells(run.dir, score_key(run, Target()))
        except MiniGPTError:
            return None

    def interval(run: Run) -> tuple[float, float] | None:
        return run.record.best.ci95 if run.record.best else None

    tied = {run.name for run in others if overlap(interval(first), interval(run))}
    best = cells(first) if others else None
    if best is None:
        return tied
    paired = {run.name: found for run in others if (found := cells(run)) is not None and len(found) == len(best)}
    return (tied - paired.keys()) | paired_ties(best, paired)


def fold(runs: Sequence[Run]) -> tuple[list[Folded], list[tuple[Run, Run]]]:
    """A row for each recipe, best first within each text; and the runs that are not counted, each with the run that it repeats."""
    from minigpt_cli.evaluation.recipes import observations
    from minigpt_cli.evaluation.seeds import group_of

    ranked, repeats = [], []
    for on_one_text in by_text(runs):
        recipes: dict[str, list[Run]] = defaultdict(list)
        for run in on_one_text:
            recipes[_recipe_or_name(run)].append(run)
        rows = []
        for group in recipes.values():
            counted, repeating = observations(group)
            repeats += repeating
            seeds = group_of([run.record.best.nats_per_char for run in counted if run.record.best])
            first = counted[0].record
            names = [run.name for run in counted]
            rows.append(Folded(0, names, seeds.n, seeds.mean, seeds.std_error, first.arch, first.n_params, first.text_sha256))
        rows.sort(key=lambda row: row.nats_per_char)
        ranked += [replace(row, rank=position) for position, row in enumerate(rows, 1)]
    return ranked, repeats


def _recipe_or_name(run: Run) -> str:
    """The run's recipe, or a name that no other run has where its configuration cannot be read."""
    from minigpt_cli.evaluation.recipes import recipe_of

    try:
        return recipe_of(run)
    except MiniGPTError:
        return f"unreadable {run.name}"


@dataclass(frozen=True)
class AtBudget:
    """Runs as they were within an equal budget."""

    runs: list[Run]
    limit: float | None = None  # tokens or seconds
    unit: str = ""
    left_out: tuple[str, ...] = ()  # a line for each run that is left out because its metrics cannot be read


def within(runs: Sequence[Run], budget: str) -> AtBudget:
    """The runs as they were within `budget`: `tokens` or `seconds`, with `=N` or the largest amount that all runs reached; runs without a
    score by then are left out. With `params=N` the runs of at most that size; with `params` those that no model of the same size or smaller
    beats. Raises UsageError for any other budget."""
    kind, _, amount = budget.partition("=")
    try:
        limit = float(amount) if amount else None
    except ValueError:
        limit = math.nan
    if kind not in (*_AMOUNTS, "params") or (limit is not None and not limit > 0):
        raise UsageError(f"--budget {budget}: write tokens, seconds or params, with a number if you want to choose it, as in seconds=60")
    if kind == "params":
        return AtBudget(_best_of_size(runs) if limit is None else [run for run in runs if run.record.n_params <= limit])
    scored = [run for run in runs if run.record.best is not None]
    if limit is None:
        limit = min((getattr(run.record, _AMOUNTS[kind]) for run in scored), default=0)
    found, left_out = [], []
    for run in scored:
        try:
            cut = _within(run, _AMOUNTS[kind], limit)
        except MiniGPTError as error:
            left_out.append(f"{run.name} is left out: {error}")
            continue
        if cut is not None:
            found.append(cut)
    return AtBudget(found, limit, kind, tuple(left_out))


def _best_of_size(runs: Sequence[Run]) -> list[Run]:
    """Runs that no model of the same size or smaller beats on the same text."""
    kept: list[Run] = []
    for group in by_text(runs):
        lowest = math.inf
        for run in sorted(group, key=lambda r: r.record.n_params):  # best first within a size
            if (score := run.record.best.nats_per_char) < lowest:  # type: ignore[union-attr]
                lowest = score
                kept.append(run)
    return kept


def _within(run: Run, amount: str, limit: float) -> Run | None:
    """The run as it was when it had used `limit`; None if it had not been evaluated by then."""
    by_then = [event for event in run.metrics() if getattr(event, amount) <= limit]
    scored = [(event.nats_per_char, event) for event in by_then if event.nats_per_char is not None and event.val_loss is not None]
    if not scored:
        return None
    nats, best = min(scored, key=lambda pair: pair[0])
    last = scored[-1][1]
    cut = Run(run.dir)
    changes = {
        "best": Best(step=best.step, nats_per_token=best.val_loss or 0.0, nats_per_char=nats),
        "stop_step": last.step,
        "tokens_seen": last.tokens_seen,
        "elapsed_s": last.elapsed_s,
    }
    cut.__dict__["record"] = run.record.model_copy(update=changes)
    return cut


def by_field(rows: Sequence[AnyRow], sort: str | None, names: Collection[str]) -> list[AnyRow]:
    """Rows by one of their own fields, `-field` for the largest first; those without it last. Raises UsageError for an unknown field."""
    if sort is None:
        return list(rows)
    name = sort.removeprefix("-")
    if name not in names:
        raise unknown_name("field", name, names)
    have = sorted((row for row in rows if getattr(row, name) is not None), key=lambda row: getattr(row, name), reverse=sort.startswith("-"))
    return have + [row for row in rows if getattr(row, name) is None]
