"""What the command leaves open for the planner, and its plan."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from minigpt_cli.commands.config_sources import Resolved
from minigpt_cli.config import RunConfig
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.runstore import locks
from minigpt_cli.storage import atomic_io

if TYPE_CHECKING:
    from minigpt_cli.commands.train_context import Context
    from minigpt_cli.data.dataset import Dataset
    from minigpt_cli.runstore.store import RunStore
    from minigpt_cli.training.machine import Machine
    from minigpt_cli.training.planner import DryRun

_SETTINGS = (  # that are planned where nobody gave them
    "model.n_layer",
    "model.n_embd",
    "model.n_head",
    "model.block_size",
    "model.dropout",
    "optim.batch_size",
    "optim.lr",
    "optim.muon_lr",
    "data.tokenizer",
    "data.vocab_size",
    "data.max_chars",
    "distil.teachers",
)
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
_LARGEST = 10**12


def parse_size(text: str) -> int:
    """The parameters that --size asks for; 0 for auto. Raises UsageError."""
    if text.strip().lower() == "auto":
        return 0
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kmg]?)", text.strip().lower())
    size = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not 0 < size <= _LARGEST:
        raise UsageError(f"--size {text}: give a number of parameters, such as 800k or 2.7M, or auto")
    return size


def is_planned(context: Context, wanted: Resolved) -> bool:
    """Whether settings that nobody gave are planned. Raises UsageError for a --size that no plan would keep."""
    model, optim = wanted.config.model, wanted.config.optim
    why_not = {
        "--preset": wanted.preset is not None,
        "--max-steps": optim.max_steps > 0,
        f"--arch {model.arch}": model.arch != "modern",
        "--init-from": context.origin is not None,
        "torchrun": context.world is not None,
    }
    if context.size and any(why_not.values()):
        reasons = " and ".join(name for name, given in why_not.items() if given)
        raise UsageError(f"--size is planned for a time budget, and {reasons} leaves nothing to plan: use --n-layer and --n-embd")
    return not any(why_not.values())


def planned(
    context: Context, wanted: Resolved, config: RunConfig, dataset: Dataset, begun: float | None, group: str | None = None
) -> tuple[RunConfig, list[str]]:
    """`config` with what was left open, and why; `config` itself where nothing is planned. `begun`: see Context.budget_begins."""
    from minigpt_cli.training import plan

    if not is_planned(context, wanted):
        return config, []
    key = config.compute.model_dump_json()
    if key not in context.machines:  # all runs of a group are planned for the same measured speeds
        measure = partial(plan.this_machine, config, dataset)
        context.machines[key] = _kept(context.store, group, key, measure) if group else measure()
    return plan.plan(config, wanted.explicit, dataset, context.machines[key], context.size, begun)


def _kept(store: RunStore, group: str, key: str, measure: Callable[[], Machine]) -> Machine:
    """The speeds of a group: measured by the first of its runs, so that those of other processes and of later days are planned alike."""
    path = store.speeds(group)
    if key in (known := _speeds(path)):
        return known[key]
    measured = measure()
    with atomic_io.explained("create"):
        store.dir.mkdir(parents=True, exist_ok=True)
        with locks.alone_in(store.dir):
            known = {key: measured} | _speeds(path)  # another process may have been quicker
            atomic_io.write_atomic(path, json.dumps(known))
    return known[key]


def _speeds(path: Path) -> dict[str, Machine]:
    """What is kept there; nothing if it is missing or not ours."""
    from minigpt_cli.training.machine import Machine

    with suppress(RunDamaged, ValidationError):
        found = TypeAdapter(dict[str, Machine]).validate_python(atomic_io.read_json(path))
        if all(0 < speed < math.inf for machine in found.values() for speed in machine):
            return found
    return {}


def measured_plan(context: Context, resolved: Resolved) -> tuple[DryRun, list[str]]:
    """What a run would cost, from a few real steps in all processes, and why it is planned so."""
    from minigpt_cli.commands.processes import Announcement
    from minigpt_cli.training import planner

    begun = context.budget_begins()
    planner.choose_device(resolved.config.compute.device)
    dataset, world = context.asked_dataset(resolved), context.processes()
    config, why = planned(context, resolved, resolved.config, dataset, begun)
    dataset = context.dataset(config.data)  # in the tokens of the plan
    with world.announced(Announcement(config, dataset.dir, dataset.key, dry_run=True)):
        return planner.dry_run(config, world.each(lambda: dataset), world, begun), why


def left_open(context: Context, wanted: Resolved) -> dict[str, str]:
    """The settings that are planned, by dotted name: two plans that came out differently are of one recipe."""
    if not is_planned(context, wanted):
        return {}
    how = f"about {context.size} parameters" if context.size else "auto"
    return {name: how for name in _SETTINGS if name.rpartition(".")[2] not in wanted.explicit}
