"""minigpt train --experiment NAME: a recommended experiment as an ordinary group of runs, which ends in an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import typer

from minigpt_cli.commands.config_fields import settings
from minigpt_cli.commands.config_sources import Resolved
from minigpt_cli.commands.jobs import is_one_of_jobs, side_by_side
from minigpt_cli.commands.planning import measured_plan
from minigpt_cli.commands.presets import rough_seconds
from minigpt_cli.commands.sweeping import Group, GroupResults, name_of_group, train_all
from minigpt_cli.commands.train_context import Context
from minigpt_cli.display import console, format
from minigpt_cli.display.experiments import print_costs, print_experiment
from minigpt_cli.errors import UsageError
from minigpt_cli.events import StopReason
from minigpt_cli.experiments.catalog import Experiment, experiment_names, read_experiment
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore, check_name
from minigpt_cli.training.sweeps import run_name

Wanted = Mapping[str, Mapping[str, Resolved]]
"""The runs of an experiment: by recipe, and by name."""


def run_experiment(group: Group, experiment: Experiment, name: str | None, n_seeds: int, jobs: int, html: Path | None) -> None:
    """Train what is missing of the experiment's runs, and show the answer. Raises UsageError before the first run starts."""
    context = group.context
    wanted, group_id = wanted_runs(group, experiment, name, n_seeds)
    every = {run: resolved for runs in wanted.values() for run, resolved in runs.items()}
    if not (context.json or is_one_of_jobs()):
        missing = [resolved.config for run, resolved in every.items() if not (context.store.dir / run).exists()]
        length = f", about {format.duration(sum(map(rough_seconds, missing)) / jobs)} on two cores" if missing else ""
        console.notice(f"{experiment.name}: {experiment.question}")
        console.notice(f"guess first: {experiment.bet}")
        console.notice(f"group {group_id}: {len(missing)} of {_runs(len(every))} to train{length}")
    if jobs > 1:
        threads = group.resolved().config.compute.threads
        side_by_side(jobs, context.store, group_id, len(every), threads=threads, json=context.json)
    results = train_all(group, every, GroupResults(group_id, len(every), (experiment.shown,), seeded=n_seeds > 1))
    if results.signal_number is not None:
        console.notice(f"group {group_id} is saved: the same command goes on")
        raise typer.Exit(128 + results.signal_number)
    if not is_one_of_jobs():
        from minigpt_cli.commands.experiment_answer import show_answer

        show_answer(group, experiment, group_id, {label: list(runs) for label, runs in wanted.items()}, html)
    if any(not _diverged(Run(context.store.dir / run)) for run in results.failures):
        raise typer.Exit(1)


def dry_run_experiment(group: Group, experiment: Experiment, n_seeds: int) -> None:
    """Measure a few real steps of every recipe, and show what the runs would cost."""
    wanted, group_id = wanted_runs(group, experiment, None, n_seeds)
    plans = {label: measured_plan(replace(group.context, grouped=True), next(iter(runs.values())))[0] for label, runs in wanted.items()}
    total = n_seeds * sum(plan.estimated_s for plan in plans.values())
    if group.context.json:
        shown = ("n_params", "n_active_params", "step_ms", "tokens_per_s", "peak_bytes", "epochs", "estimated_s")
        costs = {label: {name: getattr(plan, name) for name in shown} for label, plan in plans.items()}
        console.write_json({"experiment": experiment.name, "group": group_id, "seeds": n_seeds, "recipes": costs, "estimated_s": total})
        return
    rows = [(label, plan.n_params, plan.config.optim.max_steps, plan.step_ms, plan.estimated_s) for label, plan in plans.items()]
    print_costs(experiment, rows, n_seeds, total)


def show_experiments() -> None:
    """Print every experiment: its runs and their time, and its question below."""
    nothing_given = Group(Context(RunStore()), {}, None, None)
    for experiment in map(read_experiment, experiment_names()):
        configs = [_resolved(nothing_given, experiment, own).config for own in experiment.recipes.values()]
        seconds = experiment.seeds * sum(map(rough_seconds, configs))
        print_experiment(experiment, f"{_runs(len(configs) * experiment.seeds)}, about {format.duration(seconds)}")
    console.write("")
    console.write_wrapped("Times are rough, for two CPU cores: minigpt train --experiment NAME --dry-run measures yours.")


def _runs(n: int) -> str:
    return f"{n} run{'s' * (n != 1)}"


def wanted_runs(group: Group, experiment: Experiment, name: str | None, n_seeds: int) -> tuple[Wanted, str]:
    """The runs by recipe, and the name of their group. Raises UsageError for a setting that the experiment varies."""
    if clash := sorted(experiment.varied & group.flags.keys()):
        flag = settings()[clash[0]].flag
        raise UsageError(f"--experiment {experiment.name} gives its runs different values of {clash[0]}: leave out {flag}")
    group_id = check_name(name) if name else name_of_group(group, experiment.name, experiment.settings, experiment.recipes)
    first_seed = group.resolved().config.seed
    wanted: dict[str, dict[str, Resolved]] = {}
    for recipe, own in experiment.recipes.items():
        sized = own | _share_of_text(group, experiment, own)
        trial = recipe.replace(" ", "_").replace("/", "_of_")
        wanted[recipe] = {
            run_name(group_id, f"{trial},seed={seed}"): _resolved(group, experiment, sized | {"seed": seed})
            for seed in range(first_seed, first_seed + n_seeds)
        }
    return wanted, group_id


def _share_of_text(group: Group, experiment: Experiment, own: Mapping[str, Any]) -> dict[str, int]:
    """max_chars in characters, where a recipe has a share of the training text."""
    if "max_chars" not in own:
        return {}
    n_chars = group.context.dataset(_resolved(group, experiment, own).config.data).train.n_chars
    return {"max_chars": 0 if own["max_chars"] == "1" else max(1, int(n_chars * Fraction(own["max_chars"])))}


def _resolved(group: Group, experiment: Experiment, own: Mapping[str, Any]) -> Resolved:
    """The configuration of a run. Where the recipe chooses the architecture, settings that this has not are left out; so is a share of
    the text."""
    own = {name: value for name, value in own.items() if name not in ("what", "after") and not (name == "max_chars" and type(value) is str)}
    arch = own.get("arch") or group.resolved().config.model.arch

    def known(values: Mapping[str, Any]) -> dict[str, Any]:
        return {n: v for n, v in values.items() if settings()[n].section != "model" or arch in settings()[n].fields}

    flags = known(group.flags) if "arch" in own else group.flags
    base = (f"experiment {experiment.name}", known(experiment.settings))
    return replace(group, flags=flags, base=base).resolved(own)


def _diverged(run: Run) -> bool:
    return run.dir.exists() and run.record.stop_reason is StopReason.DIVERGED
