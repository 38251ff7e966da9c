"""The learning rate over a run, as a factor of its peak: a pure function of the step.

Every shape starts with the same linear warm-up and ends at `min_lr / lr`. A schedule is a function of progress in [0, 1)
and one line in the registry.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from minigpt_cli import registry
from minigpt_cli.config import OptimConfig

Shape = Callable[[float, float, OptimConfig], float]
"""(progress after the warm-up in [0, 1), final factor, config) → factor in (0, 1]."""


def constant(progress: float, final: float, config: OptimConfig) -> float:
    """The peak throughout."""
    return 1.0


def linear(progress: float, final: float, config: OptimConfig) -> float:
    """A straight line from the peak to the end."""
    return final + (1 - final) * (1 - progress)


def cosine(progress: float, final: float, config: OptimConfig) -> float:
    """Half a cosine from the peak to the end (Loshchilov & Hutter 2017)."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(progress: float, final: float, config: OptimConfig) -> float:
    """The peak, then a straight line down over the last `cooldown_frac` of the run (Zhai et al. 2022; Hägele et al. 2024)."""
    left = 1.0 if config.cooldown_frac == 0 else min(1.0, (1 - progress) / config.cooldown_frac)  # of the cool-down
    return final + (1 - final) * left


def cosine_plateau(progress: float, final: float, config: OptimConfig) -> float:
    """Half a cosine; past its end the final rate, which `stopping.Progress.tail` lowers while validation still improves."""
    return cosine(min(progress, 1.0), final, config)


def lr_factor(step: int, config: OptimConfig) -> float:
    """What the peak learning rate is multiplied by at `step`, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    shape: Shape = registry.load("schedule", config.schedule)
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return shape(progress, config.min_lr / config.lr, config)
