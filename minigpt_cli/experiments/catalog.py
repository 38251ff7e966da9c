"""The recommended experiments: experiments/*.toml. Reading one imports only tomllib.

A file says what is asked, which bet it invites, how every run is set, and what each recipe sets on its own.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from minigpt_cli.errors import unknown_name

_FOLDER = files("minigpt_cli") / "experiments"
_ORDER = ("overfit", "context", "capacity", "dropout", "data", "rate", "sampling", "ladder", "break")  # simple first


@dataclass(frozen=True)
class Experiment:
    """One experiment. `bet` asks the reader to guess. In `next`, {best} is a run of the best recipe, {other} one of another recipe,
    {runs[N]} one of recipe N, and {all} a pattern for all runs."""

    name: str
    question: str
    bet: str
    next: str
    settings: dict[str, Any]  # of every run; presets, files, variables and flags override them
    recipes: dict[str, dict[str, Any]]  # what each sets on its own; `what` describes it, `after` names the one it is compared with
    measure: Literal["", "overfit", "dropout", "data", "rate", "sampling"] = ""  # besides the scores
    against: Literal["", "before", "first"] = ""  # the recipe with which each is compared
    seeds: int = 1
    temperatures: tuple[float, ...] = ()
    top_ks: tuple[int, ...] = ()

    @property
    def shown(self) -> str:
        """The setting by which the screen names a run."""
        return next((name for name in list(self.recipes.values())[-1] if name not in ("what", "after")), "seed")

    @property
    def varied(self) -> set[str]:
        """The settings that recipes set on their own."""
        return {name for recipe in self.recipes.values() for name in recipe} - {"what", "after"}

    def partner(self, label: str) -> str | None:
        """The recipe with which this one is compared."""
        labels = list(self.recipes)
        position = labels.index(label)
        if not self.against or not position:
            return None
        return self.recipes[label].get("after") or labels[position - 1 if self.against == "before" else 0]


def experiment_names() -> list[str]:
    """The names of all experiments, simple ones first."""
    return list(_ORDER)


def read_experiment(name: str) -> Experiment:
    """The experiment `name`. Raises UsageError, with a suggestion, for an unknown name."""
    if name not in _ORDER:
        raise unknown_name("experiment", name, _ORDER)
    return Experiment(name, **tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8")))
