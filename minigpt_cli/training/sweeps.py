"""The runs of a sweep or a search, by name and settings. No torch; Optuna (the extra `search`) is imported only for a search.

A sweep is the grid of its settings' values, times its seeds: ordinary runs in one group, named after the settings in which they differ,
so that the same command finds what is finished already. A search asks Optuna for the next settings; its journal is in the runs directory,
so that processes on all machines that share the folder work on one study.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from minigpt_cli.errors import MiniGPTError, MissingExtra, UsageError
from minigpt_cli.runstore import locks
from minigpt_cli.storage.atomic_io import one_line

_LONGEST_NAME = 100  # of a run
_MOST_RUNS = 10_000  # of a grid; more is probably a typing mistake
_SPACE = re.compile(r"(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(?P<log>:log)?")


@dataclass(frozen=True)
class Space:
    """One setting and the values that a sweep or a search may give it: a range, or some choices."""

    setting: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its name within the group, and what it sets."""

    name: str
    settings: Mapping[str, str]


def parse_choices(text: str) -> Space:
    """The choices in `lr=1e-4,3e-4`. Raises UsageError."""
    setting, _, values = text.partition("=")
    found = tuple(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
    if not setting.strip() or not found:
        raise UsageError(f"--sweep {text}: write a setting and its values, as in --sweep lr=1e-4,3e-4")
    return Space(setting.strip().replace("-", "_"), choices=found)


def parse_space(text: str) -> Space:
    """The space in `lr=1e-5..1e-2:log`, `dropout=0..0.3` or `optimizer=adamw,muon`. Raises UsageError."""
    setting, _, values = text.partition("=")
    setting = setting.strip().replace("-", "_")
    wrong = UsageError(f"--search {text}: write a range or values, as in --search lr=1e-5..1e-2:log or --search optimizer=adamw,muon")
    if not setting or not values.strip():
        raise wrong
    if (match := _SPACE.fullmatch(values.strip())) is None:
        return parse_choices(text)
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        raise wrong from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (match["log"] and low <= 0):
        raise UsageError(f"--search {text}: the range must rise" + (" from above 0 for :log" if match["log"] else ""))
    return Space(setting, low, high, bool(match["log"]))


def grid(axes: Sequence[Space], seeds: Sequence[int]) -> list[Trial]:
    """Every combination of choices with every seed; the seeds of one recipe are neighbours. Raises UsageError if a setting is repeated."""
    names = [axis.setting for axis in axes]
    if len(set(names)) < len(names):
        raise UsageError(f"--sweep names {next(n for n in names if names.count(n) > 1)} twice: give all its values in one")
    if "seed" in names and len(seeds) > 1:
        raise UsageError("--sweep seed=… and --seeds both vary the seed: use one")
    if math.prod(len(axis.choices) for axis in axes) * len(seeds) > _MOST_RUNS:
        raise UsageError(f"this sweep has more than {_MOST_RUNS:,} runs: leave some values out")
    trials = []
    for values in product(*(axis.choices for axis in axes)):
        for seed in seeds:
            settings = dict(zip(names, values, strict=True)) | ({"seed": str(seed)} if len(seeds) > 1 else {})
            trials.append(Trial(",".join(f"{name}={value}" for name, value in settings.items()) or "1", settings))
    return trials


def group_name(prefix: str, *parts: Any) -> str:
    """`prefix` and six hexadecimal digits made from `parts`: the same sweep gets the same name."""
    return f"{prefix}-{hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:6]}"


def run_name(group: str, trial: str) -> str:
    """The run's name: its group and the trial; where a name cannot hold these, six hexadecimal digits replace the end."""
    readable = re.sub(r"[^A-Za-z0-9_.+=,@-]", "_", trial)
    name = f"{group}~{readable}"
    if readable == trial and len(name) <= _LONGEST_NAME and not name.endswith((".", "~", ".tmp")):
        return name
    return f"{name[: _LONGEST_NAME - 8]}~{hashlib.sha256(trial.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


class Study:
    """A search in progress, shared through its journal file.

    Every running trial is locked by its process. A running trial without a lock was left by a killed process and is continued next.
    """

    def __init__(self, journal: Path, spaces: Sequence[Space], whole_numbers: Sequence[str], seed: int) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise MissingExtra("--search", "search") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._spaces, self._whole, self._journal = optuna, spaces, set(whole_numbers), journal
        self._states = optuna.trial.TrialState
        self._releases: dict[int, Callable[[], None]] = {}  # by number: how to unlock the trials of this process
        journal.parent.mkdir(parents=True, exist_ok=True)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))  # type: ignore[arg-type] # it has the two methods
            self._study = optuna.create_study(study_name="minigpt", storage=storage, sampler=sampler, pruner=pruner, load_if_exists=True)
        except (ValueError, LookupError, TypeError) as error:
            raise MiniGPTError(f"{journal} is damaged ({one_line(str(error))}): begin a new search with another --name") from None
        if begun := len(self._trials()):
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed + begun, constant_liar=True
            )  # else every process would get the same proposals

    def _trials(self, *states: Any) -> list[Any]:
        return list(self._study.get_trials(deepcopy=False, states=states or None))

    def ask(self, wanted: int) -> tuple[Any, Trial] | None:
        """The next trial, and its settings as they would be typed: one that a killed process left, else a new one. None when `wanted`
        trials are finished or running in other processes; failed trials are not counted."""
        release = _wait_for(self._journal.with_suffix(".asking.lock"))  # a trial that is being asked for is not locked yet
        try:
            left = (trial for trial in self._trials(self._states.RUNNING) if self._hold(trial.number))
            if (trial := next(left, None)) is not None:
                asked = self._optuna.trial.Trial(self._study, trial._trial_id)
            elif len(self._trials(self._states.RUNNING, self._states.COMPLETE, self._states.PRUNED)) >= wanted:
                return None
            else:
                asked = self._study.ask()
                self._hold(asked.number)
        finally:
            release()
        return asked, Trial(f"t{asked.number}", {space.setting: self._draw(asked, space) for space in self._spaces})

    def _hold(self, number: int) -> bool:
        """Lock a trial; False if another process has locked it."""
        release = locks.acquire(self._lock_of(number))
        if release is not None:
            self._releases[number] = release
        return release is not None

    def _lock_of(self, number: int) -> Path:
        return self._journal.with_suffix(f".t{number}.lock")

    def _draw(self, asked: Any, space: Space) -> str:
        """The trial's value; the same each time."""
        if space.choices:
            return str(asked.suggest_categorical(space.setting, list(space.choices)))
        if space.setting in self._whole:
            return str(asked.suggest_int(space.setting, math.ceil(space.low), math.floor(space.high), log=space.log))
        return f"{asked.suggest_float(space.setting, space.low, space.high, log=space.log):.4g}"

    def scores(self) -> dict[str, float]:
        """Nats per character of the finished trials, by name."""
        return {f"t{trial.number}": float(trial.value) for trial in self._trials(self._states.COMPLETE)}

    def should_prune(self, asked: Any, count: int, score: float) -> bool:
        """Whether to stop a trial after its evaluation number `count`; a continued trial may report the same evaluation again."""
        if count not in self._trials()[asked.number].intermediate_values:
            asked.report(score, count)
        return bool(asked.should_prune())

    def tell(self, asked: Any, score: float | None, *, pruned: bool = False) -> None:
        """Record how a trial ended: with a score, pruned, or failed."""
        if pruned or score is None:
            self._study.tell(asked, state=self._states.PRUNED if pruned else self._states.FAIL)
        else:
            self._study.tell(asked, score)
        self._lock_of(asked.number).unlink(missing_ok=True)
        self._releases.pop(asked.number)()


class JournalLock:
    """Optuna's lock of a journal, which the kernel frees when its process dies; the next process repairs what a killed one left."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._release: Callable[[], None] = lambda: None

    def acquire(self) -> bool:
        """Wait for the lock, and remove an unfinished last line."""
        self._release = _wait_for(self._journal.with_suffix(".writing.lock"))
        with open(self._journal, "rb+") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let the next process write."""
        self._release()


def _wait_for(lock: Path) -> Callable[[], None]:
    """Lock the file, waiting while another process has it; returns how to release it."""
    while (release := locks.acquire(lock)) is None:
        pass
    return release
