"""A time budget is kept whatever the machine does meanwhile, and the run that comes of it can be repeated from plain values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_cli.config import RunConfig
from minigpt_cli.training import clock
from minigpt_cli.training.clock import Clock
from minigpt_cli.training.schedules import lr_factor

BUDGET = 100.0


def trained(
    speed: Callable[[float], float], planned: int, evaluation_s: float = 0.3, **optim: object
) -> tuple[float, RunConfig, list[float]]:
    """Seconds to the last step, the last configuration and the rates used, where a step takes speed(time) seconds."""
    config = RunConfig.model_validate(
        {"optim": {"max_steps": planned, "time_budget": BUDGET, **optim}, "eval": {"eval_every": max(1, planned // 20)}}
    )
    now, step, rates = 0.0, 0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock.time, "perf_counter", lambda: now)
        follow = Clock(config, 0.0, 10**9)
        while step < config.optim.max_steps:
            begun, first = now, step
            while now - begun < 0.5 and step < config.optim.max_steps:
                rates.append(lr_factor(step, config.optim, config.resume_changes))
                now, step = now + speed(now), step + 1
                if step % config.eval.eval_every == 0:
                    break
            follow.observe(step - first, now - begun)
            end = now
            if step % config.eval.eval_every == 0:
                now += evaluation_s
                follow.evaluation_s = evaluation_s
            config = follow.plan(config, step)
    return end, config, rates


def changing(first: float, second: float) -> Callable[[float], float]:
    return lambda now: first if now < BUDGET / 2 else second


def stopped(at: float, long: float) -> Callable[[float], float]:
    """As when the process is suspended once."""
    return lambda now: long if at <= now < at + 0.05 else 0.05


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
@pytest.mark.parametrize(
    ("speed", "planned", "within"),
    [
        (changing(0.05, 0.05), 1900, 0.03),
        (changing(0.05, 0.1), 1900, 0.05),
        (changing(0.1, 0.05), 950, 0.05),
        (changing(0.1, 0.1), 1900, 0.03),  # the plan was wrong from the beginning
        (changing(0.05, 0.05), 600, 0.03),
        (lambda now: 0.1 if now % 20 < 10 else 0.05, 1300, 0.05),  # a neighbour that comes and goes
        (stopped(at=50, long=20), 1900, 0.03),
        (stopped(at=75, long=20), 1900, 0.03),
        (lambda now: 5.0 if now % 15 < 0.05 else 0.05, 1900, 0.05),  # stopped again and again
    ],
)
def test_the_last_step_is_done_when_the_budget_ends(speed: Callable[[float], float], planned: int, within: float, schedule: str) -> None:
    seconds, config, rates = trained(speed, planned, schedule=schedule)
    assert seconds == pytest.approx(BUDGET, rel=within)
    assert rates == [lr_factor(step, config.optim, config.resume_changes) for step in range(len(rates))]
    assert len(rates) == config.optim.max_steps
    if schedule == "wsd":
        assert rates[-1] < 0.05  # the cool-down is complete
        falling = rates[config.optim.warmup_steps :]
        assert falling == sorted(falling, reverse=True)
        undisturbed = [lr_factor(step, config.optim) for step in range(len(rates))]
        assert sum(rates) > 0.8 * sum(undisturbed)  # no part of the run goes by with hardly any rate


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.02, 2.0), min_size=1, max_size=8),
    st.integers(2, 3000),
    st.floats(0, 1),
    st.integers(0, 30),
    st.floats(0, 3),
)
def test_a_run_that_kept_its_budget_is_repeated_from_its_configuration(
    speeds: list[float], planned: int, cooldown: float, warmup: int, evaluation_s: float
) -> None:
    _, config, rates = trained(
        lambda now: speeds[int(now / 7) % len(speeds)], planned, evaluation_s, cooldown_frac=cooldown, warmup_steps=warmup
    )
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert rates == [lr_factor(step, again.optim, again.resume_changes) for step in range(again.optim.max_steps)]


def test_other_schedules_keep_their_plan() -> None:
    _, config, rates = trained(changing(0.05, 0.1), 500, schedule="cosine")
    assert (len(rates), config.resume_changes) == (500, "")
