"""Laws of early stopping and of what counts as best."""

from __future__ import annotations

import json
import math

import pytest

from minigpt_cli.config import EvalConfig
from minigpt_cli.events import StopReason
from minigpt_cli.training.stopping import Counters


def observed(losses: list[float], min_delta: float = 0.0) -> tuple[Counters, list[bool]]:
    counters = Counters()
    return counters, [counters.observe(step, loss, min_delta) for step, loss in enumerate(losses, 1)]


def test_the_best_is_the_lowest_and_not_the_last() -> None:
    counters, best = observed([3.0, 2.0, 2.5, 1.9, 1.95])
    assert (counters.best_step, counters.best_loss) == (4, 1.9)
    assert best == [True, True, False, True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_best(bad: float) -> None:
    counters, best = observed([bad, 2.0, bad])
    assert best == [False, True, False]
    assert counters.best_loss == 2.0


def test_an_improvement_below_min_delta_is_best_but_does_not_restart_patience() -> None:
    counters, best = observed([2.0, 1.95, 1.91, 1.85], min_delta=0.1)
    assert best == [True, True, True, True]
    assert counters.reference == 1.85
    assert counters.without_improvement == 0
    stalled, _ = observed([2.0, 1.95, 1.91], min_delta=0.1)
    assert stalled.without_improvement == 2


def test_early_stopping_comes_after_patience_evaluations_without_improvement() -> None:
    config = EvalConfig(patience=2)
    counters, _ = observed([2.0, 2.1])
    assert counters.reason(config) is None
    assert counters.patience_left(config) == 1
    counters.observe(3, 2.2, 0.0)
    assert counters.reason(config) == "early_stopping"


def test_patience_zero_never_stops() -> None:
    counters, _ = observed([1.0] + [2.0] * 50)
    assert counters.reason(EvalConfig()) is None
    assert counters.patience_left(EvalConfig()) is None


def test_the_target_loss_stops() -> None:
    counters, _ = observed([1.49])
    assert counters.reason(EvalConfig(target_loss=1.5)) == "target_loss"
    assert counters.reason(EvalConfig(target_loss=1.4)) is None


def test_the_plateau_ends_when_the_third_lowering_of_the_rate_does_not_help() -> None:
    counters, _ = observed([1.0])
    ends = []
    for step in range(2, 8):
        counters.observe(step, 1.1, 0.0)
        counters.lower_rate()
        ends.append(counters.is_exhausted())
    assert counters.tail_factor == 0.125
    assert ends == [False] * 5 + [True]


def test_a_signal_is_the_strongest_reason_to_stop_and_the_time_limit_the_weakest() -> None:
    ordered = sorted((reason for reason in StopReason), key=lambda reason: reason.strength)
    assert ordered[0] is StopReason.TIME_LIMIT
    assert ordered.index(StopReason.DIVERGED) < ordered.index(StopReason.PRUNED) < ordered.index(StopReason.INTERRUPTED_KEYBOARD)
    assert [reason.signal_number for reason in ordered if reason.signal_number] == [2, 15]
    assert all(reason.strength > 0 for reason in StopReason)  # 0 means: go on


def test_the_counters_are_the_same_after_json() -> None:
    for counters in (Counters(), observed([2.0, 2.1, math.nan])[0]):
        assert Counters.from_state(json.loads(json.dumps(counters.state(), allow_nan=False))) == counters
