"""The sides of a comparison: single runs, or the seeds of recipes. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation.recipes import by_recipe, differing, observations, repeat_notice
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

Sides = list[tuple[str, list[Run]]]
"""Name and runs of each side."""


def chosen_sides(store: RunStore, names: Sequence[str], *, by_config: bool = False) -> tuple[Sides, list[str]]:
    """The sides of a comparison, and a line for each run that is left out because it repeats another of its side.

    Each name is one side: a run or, with `*`, all runs that match, as seeds of one recipe. `by_config` sorts all these runs into recipes
    instead. Raises RunNotFound, and UsageError for fewer than two sides, a run on two of them, or a side that mixes recipes.
    """
    sides = [(name, [*store.find_all([name])]) for name in names]
    if by_config:
        sides = named_recipes(list({run.label: run for _, runs in sides for run in runs}.values()))
        if len(sides) < 2:
            raise UsageError("these runs all have one recipe, they differ at most in their seed: name runs of another recipe too")
    else:
        sides = [(name if "*" in name else runs[0].label, runs) for name, runs in sides]
        _check_sides(sides)
    notices = []
    for i, (name, runs) in enumerate(sides):
        counted, repeats = observations(runs)
        sides[i] = (name, counted)
        notices += [repeat_notice(*pair) for pair in repeats]
    return sides, notices


def _check_sides(sides: Sides) -> None:
    """Raise UsageError unless there are two or more, of different runs, each of one recipe."""
    seen: dict[str, str] = {}
    for name, runs in sides:
        for run in runs:
            if run.label in seen:
                raise UsageError(
                    f"run {run.label!r} is on two sides, {seen[run.label]!r} and {name!r}: a run cannot be compared with itself"
                )
            seen[run.label] = name
    for name, runs in sides:
        if len(recipes := by_recipe(runs)) > 1:
            a, b = recipes[0][0], recipes[1][0]
            raise UsageError(
                f"{name!r} matches runs of {len(recipes)} recipes ({a.name!r} and {b.name!r} differ in {differing(a, b)}): "
                "give a name with * for each recipe, or --group-by config"
            )
    if len(sides) < 2:
        one = f"{sides[0][0]!r} matches {len(sides[0][1])} seeds of one recipe: " if len(sides[0][1]) > 1 else ""
        raise UsageError(f"{one}compare needs two runs or more, or two names with * for the seeds of two recipes")


def named_recipes(runs: Sequence[Run]) -> Sides:
    """The runs of each recipe, under what their names share."""
    return [(_common_name([run.name for run in group]), group) for group in by_recipe(runs)]


def _common_name(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(re.sub(r"(~|,)seed=\d+$", "", name) for name in names))
    shortest, longest = min(names), max(names)  # in alphabetical order: what these two share, all names share
    prefix = shortest[: next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))]
    prefix = re.sub(r"[^~,_=-]*$", "", prefix)  # whole words: no "lr=1e-*" and no "seed=133*"
    return names[0] if len(names) == 1 else f"{prefix}*" if prefix else ", ".join(names)
