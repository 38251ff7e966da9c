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
def test_the_rate_never_rises_after_the_warm_up_and_ends_near_the_minimum(schedule: str) -> None:
    factors = [lr_factor(step, config(schedule)) for step in range(10, 100)]
    assert all(a >= b for a, b in pairwise(factors))
    assert 0.1 <= factors[-1] < 0.13


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("joined", "steps"), [(100, 200), (60, 200), (60, 80), (5, 200)])
@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_the_rate_moves_to_another_number_of_steps_without_a_jump(schedule: str, joined: int, steps: int, warmup_steps: int) -> None:
    before, after = (config(schedule, max_steps=n, warmup_steps=warmup_steps) for n in (100, steps))
    factors = [lr_factor(step, after, f"{joined}:max_steps=100") for step in range(steps)]
    own, straight = ([lr_factor(step, each) for step in range(max(100, steps))] for each in (before, after))
    assert factors[:joined] == own[:joined]
    assert factors[joined + 10 :] == straight[joined + 10 : steps]
    at = own[joined - 1]
    if at == straight[joined - 1]:  # both schedules give this rate, as in the warm-up: it goes on as planned
        assert factors == straight[:steps]
        return
    for i in range(10):  # a straight line from the rate at the join to the schedule
        assert factors[joined + i] == pytest.approx(at + (straight[joined + i] - at) * (i + 1) / 11)


def test_the_number_of_steps_may_change_again_while_the_rate_still_moves() -> None:
    final, changes = config("linear", max_steps=400), "100:max_steps=100 105:max_steps=200 105:max_steps=300"
    factors = [lr_factor(step, final, changes) for step in range(400)]
    assert factors[:105] == [lr_factor(step, config("linear", max_steps=200), "100:max_steps=100") for step in range(105)]
    assert factors[115:] == [lr_factor(step, final) for step in range(115, 400)]
    assert all(abs(a - b) < 0.1 for a, b in pairwise(factors))


def test_the_rate_moves_from_that_of_the_lowered_tail() -> None:
    longer, changes = config("cosine-plateau", max_steps=300), "120:max_steps=100 120:lr_scale=0.25"
    assert lr_factor(119, longer, changes) == pytest.approx(0.1)  # the tail lowers it from outside
    at, straight = 0.1 * 0.25, lr_factor(120, longer)
    assert lr_factor(120, longer, changes) == pytest.approx(at + (straight - at) / 11)


def test_cosine_is_halfway_in_the_middle() -> None:
    assert lr_factor(55, config("cosine")) == pytest.approx(0.55)


def test_wsd_is_flat_until_its_cool_down() -> None:
    factors = [lr_factor(step, config("wsd", cooldown_frac=0.5)) for step in (10, 40, 54)]
    assert factors == [1.0, 1.0, 1.0]
    assert lr_factor(56, config("wsd", cooldown_frac=0.5)) < 1.0


def test_cosine_plateau_stays_at_its_minimum_past_the_end() -> None:
    assert lr_factor(150, config("cosine-plateau")) == pytest.approx(0.1)
