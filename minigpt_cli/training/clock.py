"""Keeps a time budget while a run trains, whatever else the machine has to do.

Steps are planned from a second of measured speed, and a neighbour that comes or goes makes that plan wrong. As long as the rate is
constant, the number of steps may change without changing anything that was done: the run is then the one planned with the last number.
Once the rate falls, a new number bends the rest of the fall; `RunConfig.resume_changes` notes it, so that the run can be repeated from
plain values.
"""

from __future__ import annotations

import math
import time

from minigpt_cli.config import OptimConfig, RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.resume_changes import CHANGES_LIMIT
from minigpt_cli.training.distributed import World
from minigpt_cli.training.law import LAW, Training
from minigpt_cli.training.schedules import cooldown_start
from minigpt_cli.training.vocabularies import present

_SMOOTHED = 0.15  # of the time that is left: the time over which speed is averaged
_SMOOTHED_S = 2.0  # at least: first steps are slow
_MOST_NEW = 0.5  # weight of the latest steps in that average, at most: what stops a process may be over
_TOLERANCE = 0.02  # of the budget: an end that is off by less changes nothing once the rate falls
_SCHEDULES = ("wsd", "constant")  # those whose rate does not depend on the number of steps from the beginning
_LEAST = 0.5  # of the budget without the teachers' share: what is left for training however long the start took


def most_steps(config: RunConfig, dataset: Dataset, world: World) -> int:
    """The steps after which a time budget ends a run, however much time is left: more would only memorise the text."""
    training = Training.of(config, present(dataset), world.size)
    return max(1, int(LAW.enough_tokens(training) / training.step_tokens))


def left_s(config: RunConfig, begun: float | None) -> float:
    """Seconds of the time budget that are left for training when training begins; where it begins only now, all but the teachers'."""
    budget_s = config.optim.time_budget
    own_s = budget_s * (1 - config.distil.teacher_time) if config.distil.teachers else budget_s
    return own_s if begun is None else max(_LEAST * own_s, begun + budget_s - time.perf_counter())


def spent_s(config: RunConfig, begun: float | None) -> float:
    """Seconds of the time budget that the start took, before the first teacher; never more than what a start may take."""
    return 0.0 if begun is None else min((1 - _LEAST) * config.optim.time_budget, time.perf_counter() - begun)


class Clock:
    """When a run with a time budget has to be done, and the number of steps that fit."""

    def __init__(self, config: RunConfig, begun: float, most_steps: int) -> None:
        """`begun`: when the budget began, by time.perf_counter; `most_steps`: never plan more. Make it when training begins."""
        self._budget_s, self._most_steps = config.optim.time_budget, most_steps
        left = left_s(config, begun)
        self._deadline = time.perf_counter() + left
        self._steps_per_s = config.optim.max_steps / left  # as planned
        self.evaluation_s = 0.0  # of the last evaluation

    def observe(self, steps: int, seconds: float) -> None:
        """Note how long the latest steps took."""
        if steps and seconds > 0:
            smoothed = max(_SMOOTHED_S, _SMOOTHED * (self._deadline - time.perf_counter()))
            share = min(_MOST_NEW, 1 - math.exp(-seconds / smoothed))
            self._steps_per_s += share * (steps / seconds - self._steps_per_s)

    def plan(self, config: RunConfig, step: int) -> RunConfig:
        """The configuration with the number of steps that fit after `step`; `config` itself if it is to stay."""
        optim = config.optim
        if optim.schedule not in _SCHEDULES or step >= optim.max_steps:
            return config
        each_s = 1 / self._steps_per_s + self.evaluation_s / config.eval.eval_every
        fitting = min(self._most_steps, max(step + 1, step + int((self._deadline - time.perf_counter()) / each_s)))
        if fitting == optim.max_steps:
            return config
        if optim.schedule == "constant":
            return config.changed(optim={"max_steps": fitting})
        if step <= cooldown_start(optim) and not config.resume_changes:
            longer = _steps_with_cooldown_from(step, optim)  # the least whose rate is the same so far
            if longer <= fitting:
                return config.changed(optim={"max_steps": fitting})
            if longer < optim.max_steps:
                config, optim = config.changed(optim={"max_steps": longer}), optim.model_copy(update={"max_steps": longer})
        note = f"{step}:budget_steps={optim.max_steps}"
        if abs(fitting - optim.max_steps) * each_s < _TOLERANCE * self._budget_s or len(config.resume_changes) + len(note) >= CHANGES_LIMIT:
            return config
        changes = f"{config.resume_changes} {note}".strip()
        return config.changed(optim={"max_steps": fitting}).model_copy(update={"resume_changes": changes})


def _steps_with_cooldown_from(step: int, optim: OptimConfig) -> int:
    """The smallest number of steps whose rate falls only after `step` steps."""
    stable = max(0, step - optim.warmup_steps)
    share = 1 - optim.cooldown_frac
    return optim.warmup_steps + math.ceil(stable / share) if share else optim.max_steps
