"""Which runs are seeds of one recipe. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from minigpt_cli.errors import RunNotFound, UsageError
from minigpt_cli.runstore import Run, RunStore

_OF_THE_MACHINE = {"device": "auto", "threads": 0, "attention": "auto", "compile": "auto"}


def recipe_of(run: Run) -> str:
    """What runs of one recipe have in common: the configuration without its seed, without what the machine decided (device,
    threads, attention path, compilation) and, in a sweep, without the number of steps that happened to fit a time budget."""
    config = run.config
    parts: dict[str, Any] = {"seed": 0, "compute": config.compute.model_copy(update=_OF_THE_MACHINE)}
    if run.record.group is not None:
        parts["optim"] = config.optim.model_copy(update={"max_steps": 0})
        parts["eval"] = config.eval.model_copy(update={"eval_every": 0})
    return config.model_copy(update=parts).model_dump_json() + (run.record.group or "")


def chosen_sides(store: RunStore, names: Sequence[str], *, by_config: bool = False) -> list[tuple[str, list[Run]]]:
    """The sides of a comparison: a run for each name; for a name with `*` all that match, as seeds of one recipe; or, `by_config`,
    all of them sorted into recipes. Raises RunNotFound, and UsageError for fewer than two sides or a run on two of them."""
    sides = [(name, _matching(store, name) if "*" in name else [store.find(name)]) for name in names]
    if by_config:
        return _named_recipes(list({run.name: run for _, runs in sides for run in runs}.values()))
    sides = [(name if "*" in name else runs[0].name, runs) for name, runs in sides]
    seen: dict[str, str] = {}
    for name, runs in sides:
        for run in runs:
            if run.name in seen:
                raise UsageError(f"run {run.name!r} is on two sides, {seen[run.name]!r} and {name!r}: a run cannot be compared with itself")
            seen[run.name] = name
    if len(sides) < 2:
        raise UsageError("compare needs two runs or more; for the seeds of several recipes give names with *, or --group-by config")
    return sides


def _matching(store: RunStore, pattern: str) -> list[Run]:
    found = [run for run in store.runs() if fnmatchcase(run.name, pattern)]
    if not found:
        raise RunNotFound(f"no run in {store.dir} matches {pattern!r}")
    return found


def _named_recipes(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    recipes: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        recipes[recipe_of(run)].append(run)
    if len(recipes) < 2:
        raise UsageError("these runs are all of one recipe, they differ at most in their seed: name runs of another one too")
    return [(_common_name([run.name for run in group]), group) for group in recipes.values()]


def _common_name(names: Sequence[str]) -> str:
    shortest, longest = min(names), max(names)  # in alphabetical order: what these two share, all share
    prefix = shortest[: next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))]
    return names[0] if len(names) == 1 else f"{prefix}*" if prefix else ", ".join(names)
