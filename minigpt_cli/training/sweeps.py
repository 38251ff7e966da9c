"""Which runs a sweep or a search consists of, by name and settings. No torch; Optuna (the extra `search`) only to search.

A sweep is the grid of its axes, times its seeds: ordinary runs that share a group and are named after what sets them
apart, so that the same command typed again finds what is done. A search asks Optuna for the next settings; its journal
lies in the runs directory, so that processes on any machine that shares the folder work on one study.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from minigpt_cli.errors import MissingExtra, UsageError

_LONGEST_NAME = 100  # of a run
_MOST_RUNS = 10_000  # of a grid: more is a slip of the finger
_SPACE = re.compile(r"(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(?P<log>:log)?")


@dataclass(frozen=True)
class Axis:
    """One setting and the values that a sweep gives it."""

    setting: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Space:
    """One setting and where a search may draw it from: a range, or some values."""

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


def parse_axis(text: str) -> Axis:
    """The axis in `lr=1e-4,3e-4`. Raises UsageError."""
    setting, _, values = text.partition("=")
    found = tuple(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
    if not setting.strip() or not found:
        raise UsageError(f"--sweep {text}: write a setting and its values, as in --sweep lr=1e-4,3e-4")
    return Axis(setting.strip().replace("-", "_"), found)


def parse_space(text: str) -> Space:
    """The space in `lr=1e-5..1e-2:log`, `dropout=0..0.3` or `optimizer=adamw,muon`. Raises UsageError."""
    setting, _, values = text.partition("=")
    setting = setting.strip().replace("-", "_")
    wrong = UsageError(f"--search {text}: write a range or values, as in --search lr=1e-5..1e-2:log or --search optimizer=adamw,muon")
    if not setting or not values.strip():
        raise wrong
    if (match := _SPACE.fullmatch(values.strip())) is None:
        return Space(setting, choices=parse_axis(text).values)
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        raise wrong from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (match["log"] and low <= 0):
        raise UsageError(f"--search {text}: the range must rise" + (" from above 0 for :log" if match["log"] else ""))
    return Space(setting, low, high, bool(match["log"]))


def grid(axes: Sequence[Axis], seeds: Sequence[int]) -> list[Trial]:
    """Every combination of values with every seed; the seeds of one recipe stand together. Raises UsageError if a setting recurs."""
    names = [axis.setting for axis in axes]
    if len(set(names)) < len(names):
        raise UsageError(f"--sweep names {next(n for n in names if names.count(n) > 1)} twice: put all its values into one")
    if "seed" in names and len(seeds) > 1:
        raise UsageError("--sweep seed=… and --seeds both vary the seed: use one")
    if math.prod(len(axis.values) for axis in axes) * len(seeds) > _MOST_RUNS:
        raise UsageError(f"this sweep has more than {_MOST_RUNS:,} runs: leave some values out")
    trials = []
    for values in product(*(axis.values for axis in axes)):
        for seed in seeds:
            settings = dict(zip(names, values, strict=True)) | ({"seed": str(seed)} if len(seeds) > 1 else {})
            trials.append(Trial(",".join(f"{name}={value}" for name, value in settings.items()) or "1", settings))
    return trials


def group_name(prefix: str, *parts: Any) -> str:
    """A name that the same sweep gets again: `prefix` and six digits made from `parts`."""
    return f"{prefix}-{hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:6]}"


def run_name(group: str, trial: str) -> str:
    """The run's name: its group, and what sets it apart, as far as a name can hold it; else with six digits made from it."""
    readable = re.sub(r"[^A-Za-z0-9_.+=,@-]", "_", trial)
    name = f"{group}~{readable}"
    if readable == trial and len(name) <= _LONGEST_NAME and not name.endswith((".", "~", ".tmp")):
        return name
    return f"{name[: _LONGEST_NAME - 8]}~{hashlib.sha256(trial.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


class Study:
    """A search in progress, shared through its journal file."""

    def __init__(self, journal: Path, spaces: Sequence[Space], whole_numbers: Sequence[str], seed: int) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise MissingExtra("--search", "search") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._spaces, self._whole = optuna, spaces, set(whole_numbers)
        journal.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
        self._study = optuna.create_study(study_name="minigpt", storage=storage, sampler=sampler, pruner=pruner, load_if_exists=True)
        if begun := len(self._study.get_trials(deepcopy=False)):
            self._study.sampler = optuna.samplers.TPESampler(seed=seed + begun, constant_liar=True)  # or every process would ask alike

    def begun(self) -> int:
        """Trials that are done, or on their way in some process; failed ones are not counted."""
        failed = self._optuna.trial.TrialState.FAIL
        return sum(trial.state != failed for trial in self._study.get_trials(deepcopy=False))

    def running(self) -> Iterator[tuple[int, str]]:
        """Number and run of the trials that no process has finished."""
        for trial in self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.RUNNING,)):
            yield trial.number, str(trial.user_attrs.get("run", ""))

    def give_up(self, number: int) -> None:
        """Count a trial as failed: its process died."""
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def ask(self) -> tuple[Any, Trial]:
        """The next trial, and its settings as they would be typed."""
        asked = self._study.ask()
        return asked, Trial(f"t{asked.number}", {space.setting: self._draw(asked, space) for space in self._spaces})

    def _draw(self, asked: Any, space: Space) -> str:
        if space.choices:
            return str(asked.suggest_categorical(space.setting, list(space.choices)))
        if space.setting in self._whole:
            return str(asked.suggest_int(space.setting, math.ceil(space.low), math.floor(space.high), log=space.log))
        return f"{asked.suggest_float(space.setting, space.low, space.high, log=space.log):.4g}"

    def tell(self, asked: Any, score: float | None, *, pruned: bool = False) -> None:
        """How a trial ended: its score, pruned, or failed."""
        states = self._optuna.trial.TrialState
        if pruned:
            self._study.tell(asked, state=states.PRUNED)
        elif score is None:
            self._study.tell(asked, state=states.FAIL)
        else:
            self._study.tell(asked, score)
