"""minigpt train --sweep, --seeds and --search: many ordinary runs in one group, one after the other in this process.

What is done is found again by name, what was interrupted goes on, and one failure does not end the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_cli.commands.config_fields import settings
from minigpt_cli.commands.config_sources import Resolved, override, resolve
from minigpt_cli.commands.init_from import Beginning
from minigpt_cli.commands.train_run import Outcome, Output, Request, train_new, train_on
from minigpt_cli.display import console
from minigpt_cli.display.training_screen import Standings
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError, unknown_name
from minigpt_cli.events import Evaluated, Event, Resumed, StopReason
from minigpt_cli.runstore.store import Run, RunStore, check_name
from minigpt_cli.training.sweeps import Space, Study, Trial, grid, group_name, parse_axis, parse_space, run_name

if TYPE_CHECKING:
    from minigpt_cli.training.distributed import World


@dataclass(frozen=True)
class Recipe:
    """What all runs of a group have in common."""

    store: RunStore
    flags: dict[str, Any]
    preset: str | None
    file: Path | None
    beginning: Beginning | None
    output: Output
    world: World | None = None

    def resolved(self, trial: Trial) -> Resolved:
        """The configuration of one run. Raises UsageError."""
        beneath = (f"--init-from {self.beginning.what}", self.beginning.settings()) if self.beginning else None
        return resolve({**self.flags, **trial.settings}, preset=self.preset, file=self.file, beneath=beneath)


@dataclass
class Tally:
    """How the runs of a group went."""

    total: int
    scores: dict[str, float] = field(default_factory=dict)  # nats per character by run
    failures: dict[str, str] = field(default_factory=dict)
    signal_number: int | None = None

    def fail(self, name: str, error: MiniGPTError) -> None:
        """Count a run that failed, and say why."""
        self.failures[name] = str(error)
        console.warn(f"{name}: {error}")

    def standings(self, group: str) -> Standings:
        """For the screen: the best so far."""
        done = len(self.scores) + len(self.failures)
        best = sorted(self.scores.items(), key=lambda pair: pair[1])
        return Standings(group, done, self.total, tuple((name.removeprefix(f"{group}~"), score) for name, score in best[:5]))


def run_sweep(recipe: Recipe, name: str | None, sweeps: Sequence[str], n_seeds: int) -> tuple[str, Tally]:
    """Train every run of the grid that is not done yet; the group's name and how it went. Raises UsageError before anything is trained."""
    axes = [parse_axis(text) for text in sweeps]
    _check_settings([axis.setting for axis in axes])
    first_seed = recipe.resolved(Trial("", {})).config.seed
    trials = grid(axes, range(first_seed, first_seed + n_seeds))
    group = check_name(name) if name else group_name("sweep", recipe.flags, recipe.preset, str(recipe.file), sweeps, n_seeds)
    wanted = {run_name(group, trial.name): recipe.resolved(trial) for trial in trials}
    _check_distinct(wanted)
    tally = Tally(len(wanted))
    for run, resolved in wanted.items():
        if not _one(recipe, group, run, resolved, tally):
            break
    return group, tally


def _check_distinct(wanted: Mapping[str, Resolved]) -> None:
    """Raise UsageError if two runs of a group would be one: the same settings with the same seed, written in two ways."""
    first: dict[str, str] = {}
    for name, resolved in wanted.items():
        earlier = first.setdefault(resolved.config.model_dump_json(), name)
        if earlier != name:
            raise UsageError(f"{earlier!r} and {name!r} have the same settings and seed, so they would be one run twice: leave one out")


def run_search(recipe: Recipe, name: str | None, searches: Sequence[str], n_trials: int) -> tuple[str, Tally]:
    """Train up to `n_trials` runs with settings that Optuna proposes; other processes may share the study. Raises UsageError."""
    spaces = [parse_space(text) for text in searches]
    _check_settings([space.setting for space in spaces])
    for space in spaces:  # both ends must be allowed, so that no trial dies of its settings
        for value in space.choices or (_as_typed(space, space.low), _as_typed(space, space.high)):
            recipe.resolved(Trial("", {space.setting: value}))
    group = check_name(name) if name else group_name("search", recipe.flags, recipe.preset, str(recipe.file), searches)
    whole = [space.setting for space in spaces if settings()[space.setting].annotation is int]
    study = Study(recipe.store.dir / f".{group}.journal", spaces, whole, recipe.resolved(Trial("", {})).config.seed)
    tally = Tally(n_trials, {run_name(group, trial): score for trial, score in study.scores().items()})
    while len(tally.failures) < n_trials and (given := study.ask(n_trials)) is not None:
        asked, trial = given
        run = run_name(group, trial.name)
        try:
            going_on = _one(recipe, group, run, recipe.resolved(trial), tally, _pruner(study, asked, Run(recipe.store.dir / run)))
        except UsageError as error:  # values that are allowed each, and not together
            study.tell(asked, None)
            if not tally.scores and not tally.failures:
                raise
            tally.fail(run, error)
            continue
        if not going_on:
            break  # the trial is left as it is, to go on when the same command is typed again
        pruned = run in tally.scores and Run(recipe.store.dir / run).record.stop_reason is StopReason.PRUNED
        study.tell(asked, tally.scores.get(run), pruned=pruned)
    return group, tally


def _as_typed(space: Space, value: float) -> str:
    return str(round(value)) if settings()[space.setting].annotation is int else f"{value:.6g}"


def _pruner(study: Study, asked: Any, run: Run) -> Callable[[Event], StopReason | None]:
    """Tells the search of every evaluation; asks to stop once the search has seen enough."""
    count = 0

    def watch(event: Event) -> StopReason | None:
        nonlocal count
        if isinstance(event, Resumed):
            count = sum(evaluated.nats_per_char is not None for evaluated in run.metrics())
        if not isinstance(event, Evaluated) or event.nats_per_char is None:
            return None
        count += 1
        return StopReason.PRUNED if study.should_prune(asked, count, event.nats_per_char) else None

    return watch


def _check_settings(names: Sequence[str]) -> None:
    for name in names:
        if name not in (typed := [s.name for s in settings().values() if s.is_typed]):
            raise unknown_name("setting", name, typed)


def _one(
    recipe: Recipe, group: str, name: str, resolved: Resolved, tally: Tally, watch: Callable[[Event], StopReason | None] | None = None
) -> bool:
    """Train, continue or find done the run of this name; whether the group should go on."""
    output = replace(recipe.output, standings=tally.standings(group), watch=watch)
    try:
        outcome = _trained(recipe, group, name, resolved, output)
    except MiniGPTError as error:
        if isinstance(error, UsageError) and not tally.scores and not tally.failures:
            raise  # the first run already: what is wrong is wrong with all of them
        if recipe.world is not None and recipe.world.broken:
            raise  # the other processes are stuck in the run that failed here
        tally.fail(name, error)
        return True
    run = Run(recipe.store.dir / name)
    if run.record.best is not None:
        tally.scores[name] = run.record.best.nats_per_char
    if outcome is not None:
        tally.signal_number = outcome.signal_number
        if not recipe.output.json and run.record.best is not None:
            console.notice(f"{name}: {run.record.best.nats_per_char:.4f} nats per character ({len(tally.scores)} of {tally.total})")
        return outcome.stopped.stop_reason.signal_number is None
    return True


def _trained(recipe: Recipe, group: str, name: str, resolved: Resolved, output: Output) -> Outcome | None:
    """How the run ended, now; None if it had ended before. Raises UsageError for a run of that name with other settings."""
    folder = recipe.store.dir / name
    if not folder.exists():
        notices = resolved.notices
        request = Request(resolved.config, recipe.store, name, recipe.preset, group, output, notices, recipe.beginning, recipe.world)
        return train_new(request)
    run = Run(folder)
    try:
        record = run.record
    except RunDamaged:
        recipe.store.remove(run)
        return _trained(recipe, group, name, resolved, output)
    for setting, value in resolved.explicit.items():
        section = settings()[setting].section
        wanted, have = (getattr(getattr(config, section) if section else config, setting) for config in (resolved.config, run.config))
        if wanted != have and value not in ("auto", 0, "0"):
            raise UsageError(f"run {name!r} exists with {setting} {have}, not {wanted}: choose another --name for this sweep")
    if record.status == "finished":
        return None
    if record.stop_reason is StopReason.DIVERGED:
        raise MiniGPTError("diverged before: remove the run to try again")
    if not record.files:
        recipe.store.remove(run)
        return _trained(recipe, group, name, resolved, output)
    return train_on(run, recipe.store, lambda saved: override(saved, {}), output, recipe.world)
