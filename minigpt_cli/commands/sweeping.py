"""minigpt train --sweep, --seeds and --search: many ordinary runs in one group, one after the other in this process.

What is done is found again by name, what was interrupted goes on, and one failure does not end the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minigpt_cli.commands.config_fields import settings
from minigpt_cli.commands.config_sources import Resolved, override, resolve
from minigpt_cli.commands.train_run import Context, Outcome, train_new, train_on
from minigpt_cli.display import console
from minigpt_cli.display.training_screen import Standings
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError, unknown_name
from minigpt_cli.events import Evaluated, Event, Resumed, StopReason
from minigpt_cli.runstore.store import Run, check_name
from minigpt_cli.training.sweeps import Space, Study, grid, group_name, parse_choices, parse_space, run_name


@dataclass(frozen=True)
class Group:
    """What all runs of a sweep or a search have in common."""

    context: Context
    flags: dict[str, Any]
    preset: str | None
    file: Path | None

    def resolved(self, settings: Mapping[str, Any] = MappingProxyType({})) -> Resolved:
        """The configuration of a run with these settings of its own. Raises UsageError."""
        origin = self.context.origin
        beneath = (f"--init-from {origin.what}", origin.settings()) if origin else None
        return resolve({**self.flags, **settings}, preset=self.preset, file=self.file, beneath=beneath)


@dataclass
class Tally:
    """How the runs of a group went."""

    group: str  # its name
    total: int
    scores: dict[str, float] = field(default_factory=dict)  # nats per character by run
    failures: dict[str, str] = field(default_factory=dict)
    signal_number: int | None = None

    def fail(self, name: str, error: MiniGPTError) -> None:
        """Count a run that failed, and say why."""
        self.failures[name] = str(error)
        console.warn(f"{name}: {error}")

    def standings(self) -> Standings:
        """For the screen: the best so far."""
        done = len(self.scores) + len(self.failures)
        best = sorted(self.scores.items(), key=lambda pair: pair[1])
        return Standings(self.group, done, self.total, tuple((name.removeprefix(f"{self.group}~"), score) for name, score in best[:5]))


def run_sweep(group: Group, name: str | None, sweeps: Sequence[str], n_seeds: int) -> Tally:
    """Train every run of the grid that is not done yet; how it went. Raises UsageError before anything is trained."""
    axes = [parse_choices(text) for text in sweeps]
    _check_settings([axis.setting for axis in axes])
    first_seed = group.resolved().config.seed
    trials = grid(axes, range(first_seed, first_seed + n_seeds))
    called = check_name(name) if name else group_name("sweep", group.flags, group.preset, str(group.file), sweeps, n_seeds)
    wanted = {run_name(called, trial.name): group.resolved(trial.settings) for trial in trials}
    _check_distinct(wanted)
    tally = Tally(called, len(wanted))
    for run, resolved in wanted.items():
        if not _one(group, run, resolved, tally):
            break
    return tally


def _check_distinct(wanted: Mapping[str, Resolved]) -> None:
    """Raise UsageError if two runs of a group would be one: the same settings with the same seed, written in two ways."""
    first: dict[str, str] = {}
    for name, resolved in wanted.items():
        earlier = first.setdefault(resolved.config.model_dump_json(), name)
        if earlier != name:
            raise UsageError(f"{earlier!r} and {name!r} have the same settings and seed, so they would be one run twice: leave one out")


def run_search(group: Group, name: str | None, searches: Sequence[str], n_trials: int) -> Tally:
    """Train up to `n_trials` runs with settings that Optuna proposes; other processes may share the study. Raises UsageError."""
    spaces = [parse_space(text) for text in searches]
    _check_settings([space.setting for space in spaces])
    for space in spaces:  # both ends must be allowed, so that no trial dies of its settings
        for value in space.choices or (_as_typed(space, space.low), _as_typed(space, space.high)):
            group.resolved({space.setting: value})
    called = check_name(name) if name else group_name("search", group.flags, group.preset, str(group.file), searches)
    whole = [space.setting for space in spaces if settings()[space.setting].annotation is int]
    study = Study(group.context.store.dir / f".{called}.journal", spaces, whole, group.resolved().config.seed)
    tally = Tally(called, n_trials, {run_name(called, trial): score for trial, score in study.scores().items()})
    while len(tally.failures) < n_trials and (given := study.ask(n_trials)) is not None:
        asked, trial = given
        run = run_name(called, trial.name)
        try:
            going_on = _one(group, run, group.resolved(trial.settings), tally, _pruner(study, asked, Run(group.context.store.dir / run)))
        except UsageError as error:  # values that are allowed each, and not together
            study.tell(asked, None)
            if not tally.scores and not tally.failures:
                raise
            tally.fail(run, error)
            continue
        if not going_on:
            break  # the trial is left as it is, to go on when the same command is typed again
        pruned = run in tally.scores and Run(group.context.store.dir / run).record.stop_reason is StopReason.PRUNED
        study.tell(asked, tally.scores.get(run), pruned=pruned)
    return tally


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


def _one(group: Group, name: str, wanted: Resolved, tally: Tally, watch: Callable[[Event], StopReason | None] | None = None) -> bool:
    """Train, continue or find done the run of this name; whether the group should go on."""
    context = replace(group.context, output=replace(group.context.output, standings=tally.standings(), watch=watch))
    try:
        outcome = _trained(context, tally.group, name, wanted)
    except MiniGPTError as error:
        if isinstance(error, UsageError) and not tally.scores and not tally.failures:
            raise  # the first run already: what is wrong is wrong with all of them
        if context.world is not None and context.world.broken:
            raise  # the other processes are stuck in the run that failed here
        tally.fail(name, error)
        return True
    run = Run(context.store.dir / name)
    if run.record.best is not None:
        tally.scores[name] = run.record.best.nats_per_char
    if outcome is None:
        return True
    tally.signal_number = outcome.signal_number
    if not context.output.json and run.record.best is not None:
        console.notice(f"{name}: {run.record.best.nats_per_char:.4f} nats per character ({len(tally.scores)} of {tally.total})")
    return outcome.stopped.stop_reason.signal_number is None


def _trained(context: Context, group: str, name: str, wanted: Resolved) -> Outcome | None:
    """How the run ended, now; None if it had ended before. Raises UsageError for a run of that name with other settings."""
    run = Run(context.store.dir / name)
    if not run.dir.exists():
        return train_new(context, wanted, name, group)
    try:
        record = run.record
    except RunDamaged:
        record = None
    if record is not None:
        _check_same(run, wanted)
        if record.status == "finished":
            return None
        if record.stop_reason is StopReason.DIVERGED:
            raise MiniGPTError("diverged before: remove the run to try again")
        if record.files:
            return train_on(context, run, lambda saved: override(saved, {}))
    context.store.remove(run)  # it was killed before its first save
    return train_new(context, wanted, name, group)


def _check_same(run: Run, wanted: Resolved) -> None:
    """Raise UsageError for a run with other settings than those that are wanted."""
    for name, value in wanted.explicit.items():
        asked, have = (settings()[name].value_in(config) for config in (wanted.config, run.config))
        if asked != have and value not in ("auto", 0, "0"):
            raise UsageError(f"run {run.name!r} exists with {name} {have}, not {asked}: choose another --name for this sweep")
