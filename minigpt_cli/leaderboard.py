"""Which run is best: records in, ranked rows out. No torch.

Runs are ranked by the nats per character of their best checkpoint, among runs scored on the same validation text;
other texts are groups of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from minigpt_cli.rundir import Run


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


def text_sha256(run: Run) -> str:
    """The hash of the validation text that the run's best was scored on; '' where it is not known."""
    corpus = run.record.corpus
    split = corpus.splits.get("val") if corpus else None
    return split.sha256 if split else ""


def intervals_overlap(best: Run, other: Run) -> bool:
    """Whether the two scores' intervals overlap: cautious where no paired test is at hand."""
    a, b = best.record.best, other.record.best
    return bool(a and b and a.ci95 and b.ci95 and b.ci95[0] <= a.ci95[1])


def rank(runs: Iterable[Run], tied: Callable[[Run, Run], bool] = intervals_overlap) -> list[Row]:
    """Scored runs, best first within each text; the text of the most recently saved run comes first."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.record.best is not None:
            groups[text_sha256(run)].append(run)
    newest_first = sorted(groups.values(), key=lambda group: max((r.record.place, r.record.created_at) for r in group), reverse=True)
    return [row for group in newest_first for row in _rank_group(group, tied)]


def _rank_group(group: list[Run], tied: Callable[[Run, Run], bool]) -> list[Row]:
    ordered = sorted(group, key=lambda r: (r.record.best.nats_per_char, r.record.n_params, r.name))  # type: ignore[union-attr]
    first = ordered[0]
    return [_row(position, run, position == 1 or tied(first, run)) for position, run in enumerate(ordered, 1)]


def _row(position: int, run: Run, tied_with_best: bool) -> Row:
    record = run.record
    best = record.best
    assert best is not None
    return Row(
        rank=position,
        run=run.name,
        arch=record.arch,
        tokenizer=record.tokenizer,
        nats_per_char=best.nats_per_char,
        ci95=best.ci95,
        val_loss=best.nats_per_token,
        best_step=best.step,
        stop_step=record.stop_step,
        n_params=record.n_params,
        n_active_params=record.n_active_params,
        tokens_seen=record.tokens_seen,
        elapsed_s=record.elapsed_s,
        status=run.status,
        text_sha256=text_sha256(run),
        tied_with_best=tied_with_best,
    )
