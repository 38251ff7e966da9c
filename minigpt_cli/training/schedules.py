"""The learning rate over a run, as a factor of its peak: a pure function of the step.

Every shape starts with the same linear warm-up and ends at `min_lr / lr`. A schedule is a function of the position in [0, 1) and one line
in the registry. A run that is resumed with another number of steps moves to the schedule of that number: from its present rate, in a
straight line over as many steps as the warm-up has, so that the rate never jumps. A time budget that changes the number of steps while the
rate falls only bends the rest of the fall: a straight line from the present rate to the new end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from minigpt_cli import registry
from minigpt_cli.config import OptimConfig
from minigpt_cli.resume_changes import parse_changes

_SHORTEST_JOIN = 10  # steps, where there is no warm-up

Shape = Callable[[float, float, OptimConfig], float]
"""(position after the warm-up in [0, 1), final factor, config) → factor in (0, 1]."""


def constant(position: float, final: float, config: OptimConfig) -> float:
    """Always the peak."""
    return 1.0


def linear(position: float, final: float, config: OptimConfig) -> float:
    """A straight line from the peak to the end."""
    return final + (1 - final) * (1 - position)


def cosine(position: float, final: float, config: OptimConfig) -> float:
    """Half a cosine from the peak to the end (Loshchilov & Hutter 2017)."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * position))


def warmup_stable_decay(position: float, final: float, config: OptimConfig) -> float:
    """The peak, then a straight line down over the last `cooldown_frac` of the run (Zhai et al. 2022; Hägele et al. 2024)."""
    left = 1.0 if config.cooldown_frac == 0 else min(1.0, (1 - position) / config.cooldown_frac)  # of the cool-down
    return final + (1 - final) * left


def cosine_plateau(position: float, final: float, config: OptimConfig) -> float:
    """Half a cosine, then the final rate, which `Counters.lower_rate` (stopping.py) lowers when validation stops improving."""
    return cosine(min(position, 1.0), final, config)


class _Stage(NamedTuple):
    """A part of a run with one planned number of steps."""

    start: int
    max_steps: int
    before: float  # factor of the step before `start`
    bent: bool = False  # the rest of a fall, towards another end


def lr_factor(step: int, config: OptimConfig, changes: str = "") -> float:
    """The factor of the peak learning rate at `step`, counted from 0, in a run with these `RunConfig.resume_changes`."""
    return _factor(step, config, _stages(config, changes))


def cooldown_start(config: OptimConfig) -> float:
    """The step at which the rate begins to fall with `--schedule wsd`."""
    return config.warmup_steps + (1 - config.cooldown_frac) * max(0, config.max_steps - config.warmup_steps)


def join_steps(config: OptimConfig) -> int:
    """Steps over which a run moves to the schedule of another number of steps."""
    return config.warmup_steps or _SHORTEST_JOIN


@lru_cache
def _stages(config: OptimConfig, changes: str) -> tuple[_Stage, ...]:
    known = parse_changes(changes)
    joins = [change for change in known if change.setting in ("max_steps", "budget_steps") and change.step]
    lengths = [*(int(join.before) for join in joins), config.max_steps]
    stages = [_Stage(0, lengths[0], 0.0)]
    for join, max_steps in zip(joins, lengths[1:], strict=True):
        scale = next((float(c.before) for c in known if (c.step, c.setting) == (join.step, "lr_scale")), 1.0)
        before = _factor(join.step - 1, config, tuple(stages)) * scale
        stages.append(_Stage(join.step, max_steps, before, bent=join.setting == "budget_steps"))
    return tuple(stages)


def _factor(step: int, config: OptimConfig, stages: tuple[_Stage, ...]) -> float:
    stage = next(stage for stage in reversed(stages) if stage.start <= step)
    if stage.bent:
        final = config.min_lr / config.lr
        return final + (stage.before - final) * max(0.0, (stage.max_steps - step) / (stage.max_steps - stage.start + 1))
    planned = _planned(step, stage.max_steps, config)
    if stage.start == 0 or step >= stage.start + join_steps(config):
        return planned
    if stage.before == _planned(stage.start - 1, stage.max_steps, config):  # in the warm-up, and where the rate is constant
        return planned
    return stage.before + (planned - stage.before) * (step - stage.start + 1) / (join_steps(config) + 1)


def _planned(step: int, max_steps: int, config: OptimConfig) -> float:
    """The factor at `step` of a run of `max_steps`."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    shape: Shape = registry.load("schedule", config.schedule)
    position = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return shape(position, config.min_lr / config.lr, config)
