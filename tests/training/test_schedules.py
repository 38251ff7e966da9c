"""Laws of the learning-rate schedules."""

from __future__ import annotations

from itertools import pairwise

import pytest

from minigpt_cli.config import OptimConfig
from minigpt_cli.registry import SCHEDULES
from minigpt_cli.training.schedules import lr_factor


def config(schedule: str, **changes: float) -> OptimConfig:
    return OptimConfig.model_validate({"schedule": schedule, "max_steps": 100, "warmup_steps": 10, "lr": 1e-3, "min_lr": 1e-4, **changes})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_rises_linearly_to_the_peak(schedule: str) -> None:
    factors = [lr_factor(step, config(schedule)) for step in range(10)]
    assert factors == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert lr_factor(10, config(schedule)) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "constant"])
def test_the_rate_never_rises_after_the_warm_up_and_ends_near_the_floor(schedule: str) -> None:
    factors = [lr_factor(step, config(schedule)) for step in range(10, 100)]
    assert all(a >= b for a, b in pairwise(factors))
    assert 0.1 <= factors[-1] < 0.13


def test_cosine_is_halfway_in_the_middle() -> None:
    assert lr_factor(55, config("cosine")) == pytest.approx(0.55)


def test_wsd_is_flat_until_its_cool_down() -> None:
    factors = [lr_factor(step, config("wsd", cooldown_frac=0.5)) for step in (10, 40, 54)]
    assert factors == [1.0, 1.0, 1.0]
    assert lr_factor(56, config("wsd", cooldown_frac=0.5)) < 1.0


def test_cosine_plateau_stays_on_its_floor_past_the_end() -> None:
    assert lr_factor(150, config("cosine-plateau")) == pytest.approx(0.1)
