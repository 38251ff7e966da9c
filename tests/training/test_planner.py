"""What the planner decides from measured speed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minigpt_cli.config import RunConfig
from minigpt_cli.training import planner
from minigpt_cli.training.distributed import World
from minigpt_cli.training.speed import Speed


@pytest.mark.parametrize("n_val", [10_000, 600_000, 20_000_000])
@pytest.mark.parametrize("budget", [10.0, 90.0, 3600.0])
def test_evaluations_leave_most_of_a_budget_to_steps_however_long_the_validation_text_is(n_val: int, budget: float) -> None:
    val, train = (SimpleNamespace(tokens=np.broadcast_to(np.zeros(1), n), n_chars=n) for n in (n_val, 10**9))
    dataset: Any = SimpleNamespace(val=val, train=train, tokenizer=SimpleNamespace(name="char", vocab_size=65))
    config = RunConfig.model_validate({"optim": {"time_budget": budget}})
    whole = Speed(step_s=0.05, evaluation_s=n_val / 20_000, peak_bytes=0)
    chosen, notices, _ = planner._choose_steps(config, dataset, World(), whole, None)
    assert chosen.optim.max_steps * whole.step_s >= 0.75 * budget
    assert chosen.optim.max_steps // chosen.eval.eval_every >= 3
    assert (chosen.eval.eval_iters > 0) is any("evaluations draw" in notice for notice in notices)
    assert (chosen.eval.eval_iters == 0) is (whole.evaluation_s <= 0.05 * budget / 4)


def test_no_evaluation_draws_as_many_tokens_as_the_validation_split_has() -> None:
    val, train = (SimpleNamespace(tokens=np.broadcast_to(np.zeros(1), n), n_chars=n) for n in (3_000, 27_000))
    dataset: Any = SimpleNamespace(val=val, train=train, tokenizer=SimpleNamespace(name="char", vocab_size=65))
    config = RunConfig.model_validate({"optim": {"time_budget": 20.0, "batch_size": 4}})
    slow = Speed(step_s=0.05, evaluation_s=0.4, peak_bytes=0)
    chosen, notices, _ = planner._choose_steps(config, dataset, World(), slow, None)
    assert chosen.eval.eval_iters == 0
    assert not any("evaluations draw" in notice for notice in notices)
