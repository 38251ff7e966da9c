"""minigpt train --sweep, --seeds and --search: many ordinary runs in one group, one after another in this process.

The same command finds finished runs by name and skips them, and continues interrupted ones. A failed run does not stop the others. Several
processes, on one machine (--jobs) or on several that share the folder, may run the same command: each takes runs that nobody else trains.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minigpt_cli.commands.config_fields import Setting, settings, show_value
from minigpt_cli.commands.config_sources import Resolved, override, resolve
from minigpt_cli.commands.teaching import has_begun
from minigpt_cli.commands.train_context import Context, Outcome, outcome_of
from minigpt_cli.commands.train_run import train_new, train_on
from minigpt_cli.config import RunConfig
from minigpt_cli.display import console
from minigpt_cli.display.group_screen import Standings
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError, unknown_name
from minigpt_cli.events import Evaluated, Event, Resumed, StopReason
from minigpt_cli.runstore import locks
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore, check_name
from minigpt_cli.training.sweeps import Space, Study, grid, group_name, parse_choices, parse_space, run_name


@dataclass(frozen=True)
class Group:
    """What all runs of a sweep or search share."""

    context: Context
    flags: dict[str, Any]
    preset: str | None
    file: Path | None
    base: tuple[str, Mapping[str, Any]] | None = None  # label and settings of an experiment, which override the defaults only

    def resolved(self, settings: Mapping[str, Any] = MappingProxyType({})) -> Resolved:
        """The configuration of the run with these additional settings. Raises UsageError."""
        origin = self.context.origin
        base = (f"--init-from {origin.what}", origin.settings()) if origin else self.base
        planned = origin is None and self.context.world is None
        return resolve({**self.flags, **settings}, preset=self.preset, file=self.file, base=base, planned=planned)


@dataclass
class GroupResults:
    """The results of the runs of a group so far."""

    group: str  # its name
    total: int
    swept: tuple[str, ...] = ()  # the settings in which the runs differ
    seeded: bool = False  # whether --seeds varies the seed, so that it is no setting of a recipe
    scores: dict[str, float] = field(default_factory=dict)  # nats per character by run
    failures: list[str] = field(default_factory=list)  # names of runs
    signal_number: int | None = None
    seconds: list[float] = field(default_factory=list)  # of the runs that this process trained

    def fail(self, name: str, error: MiniGPTError) -> None:
        """Count a failed run, and print its error."""
        self.failures.append(name)
        console.warn(f"{name}: {error}")

    def standings(self, store: RunStore, running: RunConfig) -> Standings:
        """The state of the group for the screen while the run with the configuration `running` trains."""
        best = sorted(self.scores.items(), key=lambda pair: pair[1])
        finished = tuple((swept_values(Run(store.dir / name).config, self.swept), score) for name, score in best)
        mean_s = sum(self.seconds) / len(self.seconds) if self.seconds else None
        return Standings(self.group, self.total, self.swept, finished, len(self.failures), swept_values(running, self.swept), mean_s)


def swept_values(config: RunConfig, swept: Sequence[str]) -> tuple[str, ...]:
    """The values of some settings as they are typed; empty where the architecture has no such setting."""
    return tuple(_shown(config, settings()[name]) for name in swept)


def _shown(config: RunConfig, setting: Setting) -> str:
    return show_value(setting.value_in(config)) if setting.section != "model" or config.model.arch in setting.fields else ""


def run_sweep(group: Group, name: str | None, sweeps: Sequence[str], n_seeds: int) -> GroupResults:
    """Train every unfinished run of the grid. Raises UsageError before the first run starts."""
    axes = [parse_choices(text) for text in sweeps]
    _check_settings([axis.setting for axis in axes])
    first_seed = group.resolved().config.seed
    trials = grid(axes, range(first_seed, first_seed + n_seeds))
    group_id = sweep_id(group, name, sweeps, n_seeds)
    wanted = {run_name(group_id, trial.name): group.resolved(trial.settings) for trial in trials}
    _check_distinct(wanted)
    swept = list(dict.fromkeys(name for trial in trials for name in trial.settings))
    return train_all(group, wanted, GroupResults(group_id, len(wanted), tuple(swept), seeded=n_seeds > 1))


def train_all(group: Group, wanted: Mapping[str, Resolved], results: GroupResults) -> GroupResults:
    """Train every unfinished run of `wanted`, by name, until a signal arrives."""
    for run, resolved in wanted.items():
        if not _train_one(group, run, resolved, results):
            break
    return results


def name_of_group(group: Group, prefix: str, *parts: Any) -> str:
    """The same for the same command."""
    size = [group.context.size] if group.context.size else []
    return group_name(prefix, group.flags, group.preset, str(group.file), *parts, *size)


def sweep_id(group: Group, name: str | None, sweeps: Sequence[str], n_seeds: int | str) -> str:
    """The name of a sweep: the same for the same command."""
    return check_name(name) if name else name_of_group(group, "sweep", sweeps, n_seeds)


def search_id(group: Group, name: str | None, searches: Sequence[str]) -> str:
    """The name of a search: the same for the same command, however many trials it asks for."""
    return check_name(name) if name else name_of_group(group, "search", searches)


def _check_distinct(wanted: Mapping[str, Resolved]) -> None:
    """Raise UsageError if two runs of a group have the same settings and seed, written in two ways."""
    first: dict[str, str] = {}
    for name, resolved in wanted.items():
        earlier = first.setdefault(resolved.config.model_dump_json(), name)
        if earlier != name:
            raise UsageError(f"{earlier!r} and {name!r} have the same settings and seed, so they would be the same run: leave one out")


def run_search(group: Group, name: str | None, searches: Sequence[str], n_trials: int) -> GroupResults:
    """Train up to `n_trials` runs with settings that Optuna proposes. Other processes may work on the same study. Raises UsageError."""
    spaces = [parse_space(text) for text in searches]
    _check_settings([space.setting for space in spaces])
    for space in spaces:  # both ends must be valid, so that no trial fails because of its settings
        for value in space.choices or (_as_text(space, space.low), _as_text(space, space.high)):
            group.resolved({space.setting: value})
    group_id = search_id(group, name, searches)
    whole = [space.setting for space in spaces if settings()[space.setting].annotation is int]
    study = Study(group.context.store.dir / f".{group_id}.journal", spaces, whole, group.resolved().config.seed)
    swept = tuple(space.setting for space in spaces)
    scores = {run_name(group_id, trial): score for trial, score in study.scores().items()}
    results = GroupResults(group_id, n_trials, swept, scores=scores)
    while len(results.failures) < n_trials and (given := study.ask(n_trials)) is not None:
        asked, trial = given
        run = run_name(group_id, trial.name)
        try:
            proceed = _train_one(
                group, run, group.resolved(trial.settings), results, _pruner(study, asked, Run(group.context.store.dir / run))
            )
        except UsageError as error:  # each value is valid alone, but not all together
            study.tell(asked, None)
            if not results.scores and not results.failures:
                raise
            results.fail(run, error)
            continue
        if not proceed:
            break  # the trial stays open, and the same command continues it
        pruned = run in results.scores and Run(group.context.store.dir / run).record.stop_reason is StopReason.PRUNED
        study.tell(asked, results.scores.get(run), pruned=pruned)
    return results


def _as_text(space: Space, value: float) -> str:
    return str(round(value)) if settings()[space.setting].annotation is int else f"{value:.6g}"


def _pruner(study: Study, asked: Any, run: Run) -> Callable[[Event], StopReason | None]:
    """A watcher that reports every evaluation to the search, and stops the run if the search prunes it."""
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


def _train_one(
    group: Group, name: str, wanted: Resolved, results: GroupResults, watch: Callable[[Event], StopReason | None] | None = None
) -> bool:
    """Train or continue the run of this name unless it is finished or another process has it; returns whether to go on with the group."""
    context = replace(group.context, standings=results.standings(group.context.store, wanted.config), watch=watch)
    began = time.monotonic()
    try:
        with _claimed(context.store, name) as ours:
            if not ours:
                return True
            outcome = _train_or_resume(context, results.group, name, wanted)
    except MiniGPTError as error:
        if isinstance(error, UsageError) and not results.scores and not results.failures:
            raise  # it is the first run, so the same error is in all of them
        if context.world is not None and context.world.broken:
            raise  # the other processes still wait in the failed run
        results.fail(name, error)
        return True
    run = Run(context.store.dir / name)
    if run.record.best is not None:
        results.scores[name] = run.record.best.nats_per_char
    if outcome is None:
        return True
    results.signal_number = outcome.signal_number
    results.seconds.append(time.monotonic() - began)
    if not context.json and not console.is_terminal(sys.stderr) and run.record.best is not None:
        console.notice(f"{name}: {run.record.best.nats_per_char:.4f} nats per character ({len(results.scores)} of {results.total})")
    return outcome.signal_number is None


@contextmanager
def _claimed(store: RunStore, name: str) -> Iterator[bool]:
    """Whether no other process trains the run of this name now; it is this process' during the block."""
    store.dir.mkdir(parents=True, exist_ok=True)
    claim = store.dir / f".{name}.claim"
    release = locks.acquire(claim, 0.0)
    try:
        yield release is not None
    finally:
        if release is not None:
            claim.unlink(missing_ok=True)
            release()


def _train_or_resume(context: Context, group: str, name: str, wanted: Resolved) -> Outcome | None:
    """The outcome of the run; None if it was finished before. Raises UsageError if a run of that name has other settings."""
    run = Run(context.store.dir / name)
    if not run.dir.exists():
        return outcome_of(train_new(context, wanted, name, group))
    try:
        record = run.record
    except RunDamaged:
        record = None
    if record is not None:
        _check_same(run, wanted)
        if record.status == "finished":
            return None
        if record.stop_reason is StopReason.DIVERGED:
            raise MiniGPTError("the run diverged in an earlier session: remove it to try again")
        if has_begun(run):
            return outcome_of(train_on(context, run, lambda saved: override(saved, {})))
    context.store.remove(run)  # it was killed before its first save
    return outcome_of(train_new(context, wanted, name, group))


def _check_same(run: Run, wanted: Resolved) -> None:
    """Raise UsageError if the run has other settings than `wanted`."""
    for name, value in wanted.explicit.items():
        asked, have = (settings()[name].value_in(config) for config in (wanted.config, run.config))
        if asked != have and value not in ("auto", 0, "0"):
            raise UsageError(f"run {run.name!r} exists with {name} {have}, not {asked}: choose another --name for this sweep")
