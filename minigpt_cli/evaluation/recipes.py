"""What a recipe is, and which runs are observations of it, for compare, the leaderboard and sweeps. No torch.

A recipe is what the seeds of one experiment share (a preset is something else: a named file of settings). It is every setting that was
asked for, the training text and the initial weights, without the seed. It excludes samples and what depends on the machine (device,
threads, attention path, how a step's windows are divided), and a value that was left open counts as open, whatever was chosen for it:
seeds planned for three minutes have one recipe although their numbers of steps differ.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from minigpt_cli.config import leaves
from minigpt_cli.errors import RunDamaged
from minigpt_cli.resume_changes import parse_changes
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.weights import weights_of

_NOT_LEARNED = (
    "compute.device", "compute.threads", "compute.attention", "compute.compile", "compute.fsdp", "compute.grad_checkpoint",
    "optim.auto_batch", "eval.save_every", "eval.keep_every", "eval.sample_every", "eval.sample_prompt",
)  # fmt: skip
_SAME_RECIPE = {  # what may change in the middle of a run: the windows of a step are only divided differently, a budget is kept
    *(name.rpartition(".")[2] for name in _NOT_LEARNED), "batch_size", "grad_accum", "time_limit", "time_budget",
    "budget_steps",
}  # fmt: skip
_SHOWN = 4  # differing settings in one line


def recipe_of(run: Run) -> str:
    """The run's recipe as JSON: two runs have the same recipe if these are equal. Raises RunDamaged."""
    return json.dumps(_recipe(run), sort_keys=True)


def _recipe(run: Run) -> dict[str, Any]:
    record, settings = run.record, leaves(run.config)
    changes = [change for change in parse_changes(run.config.resume_changes) if change.setting not in _SAME_RECIPE]
    if record.left_open is not None:
        chosen_later = {change.setting for change in changes}
        left_open = {n: value for n, value in record.left_open.items() if n in settings and n.rpartition(".")[2] not in chosen_later}
        settings |= left_open
    elif record.group is not None:  # from a version that did not record it: the steps of a group may have been planned
        settings |= {"optim.max_steps": 0, "eval.eval_every": 0, "group": record.group}
    for name in ("seed", *_NOT_LEARNED):
        settings.pop(name)
    settings["windows a step"] = settings.pop("optim.batch_size") * settings.pop("optim.grad_accum") * record.world_size
    if settings["optim.max_steps"]:
        settings.pop("optim.time_budget")  # it was not used
    if record.corpus is not None:
        settings["data.source"] = record.corpus.sha256
    settings["resume_changes"] = [f"{change.step}:{change.setting}={change.before}" for change in changes]
    settings["init_from"] = record.base.sha256 if record.base else ""
    return settings


def by_recipe(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs grouped by recipe, in their order."""
    recipes: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        recipes[recipe_of(run)].append(run)
    return list(recipes.values())


def differing(a: Run, b: Run) -> str:
    """Names of the settings in which the recipes of two runs differ, shortened."""
    one, other = _recipe(a), _recipe(b)
    names = [name for name in (one | other) if one.get(name) != other.get(name)]
    if "model.arch" in names:
        names = ["model.arch", *(name for name in names if not name.startswith("model."))]
    short = [name.rpartition(".")[2] for name in names]
    return ", ".join(short[:_SHOWN]) + (f" and {len(short) - _SHOWN} more" if len(short) > _SHOWN else "")


def observations(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """The runs that are observations, and those that repeat an earlier one, each with that run.

    Two runs of one recipe with the same seed are one observation, and so are two with the same weights.
    """
    seen: dict[Any, Run] = {}
    counted, repeats = [], []
    for run in runs:
        marks: list[object] = [*filter(None, [_seeded(run)])]
        with suppress(RunDamaged):  # one that saved nothing yet
            marks.append(weights_of(run.dir, run.record, run.checkpoint or "best").file.sha256)
        earlier = next((seen[mark] for mark in marks if mark in seen), None)
        if earlier is None:
            counted.append(run)
        else:
            repeats.append((run, earlier))
        for mark in marks:
            seen.setdefault(mark, earlier or run)
    return counted, repeats


def _seeded(run: Run) -> tuple[str, int] | None:
    """Recipe and seed; None where the configuration cannot be read."""
    try:
        return recipe_of(run), run.config.seed
    except RunDamaged:
        return None


def repeat_notice(repeat: Run, earlier: Run) -> str:
    """A line for a run that is left out because it repeats another."""
    mark = _seeded(earlier)
    same = f"has the recipe and the seed ({mark[1]})" if mark and mark == _seeded(repeat) else "has the weights"
    return f"{repeat.name} {same} of {earlier.name}, so the two are one observation: left out; other seeds come from train --seeds N"
