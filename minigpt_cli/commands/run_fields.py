"""The fields of a run by name, for --where, --sort and the tables. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import console
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError, unknown_name
from minigpt_cli.runstore.directory import DamagedRun, Run
from minigpt_cli.runstore.records import Annotations
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.display.tables import Form

_OF_RECORD = (
    "arch", "tokenizer", "created_at", "updated_at", "preset", "group", "git_commit", "git_dirty", "device", "device_name", "threads",
    "world_size", "vocab_size", "n_params", "n_active_params", "final_train_loss", "final_val_loss", "stop_step", "stop_reason",
    "tokens_seen", "elapsed_s",
)  # fmt: skip
_LISTED = (
    "run", "status", "arch", "tokenizer", "corpus", "nats_per_char", "ci95", "val_loss", "best_step", "stop_step", "stop_reason",
    "n_params", "n_active_params", "tokens_seen", "elapsed_s", "created_at", "preset", "group", "text_sha256",
    "without",
)  # fmt: skip
_WARNINGS = 5  # at most so many lines about single runs: hundreds may be damaged
_OF_BEST = {"nats_per_char": "nats_per_char", "val_loss": "nats_per_token", "best_step": "step", "ci95": "ci95"}


def field_names() -> list[str]:
    """Every field that a run may have."""
    from minigpt_cli.commands.config_fields import settings

    own = ["run", "status", "corpus", "text_sha256", "tag", "note", *_OF_RECORD, *_OF_BEST]
    return list(dict.fromkeys([*own, *settings()]))


def field_of(run: Run, name: str) -> Any:
    """The field `name` of a run; None if this run has no such field or cannot be read."""
    from minigpt_cli.commands.config_fields import settings

    if name == "tag":
        return _annotations(run).tags
    if name == "note":
        return _annotations(run).note
    try:
        record = run.record
        if name in _OF_RECORD:
            return getattr(record, name)
        if name in _OF_BEST:
            return getattr(record.best, _OF_BEST[name]) if record.best else None
        own = {"run": run.name, "corpus": record.corpus.label if record.corpus else None, "text_sha256": record.text_sha256}
        if name == "status":
            return run.status
        return own[name] if name in own else settings()[name].value_in(run.config)
    except (AttributeError, MiniGPTError):  # a setting of another architecture, or a damaged run
        return None


def _annotations(run: Run) -> Annotations:
    try:
        return run.annotations
    except MiniGPTError:
        return Annotations()


def select(runs: Iterable[Run], *, where: str | None, tags: list[str]) -> list[Run]:
    """The runs that meet the condition and have every tag. Raises UsageError for a condition with a syntax error."""
    from minigpt_cli.commands.run_filter import parse_where

    meets = parse_where(where, field_names()) if where else None
    tagged = [run for run in runs if set(tags) <= set(_annotations(run).tags)] if tags else list(runs)
    return tagged if meets is None else [run for run in tagged if meets(partial(field_of, run))]


def ordered(runs: list[Run], sort: str | None) -> list[Run]:
    """Runs by a field, `-field` for the largest first; those without it last. Raises UsageError for an unknown field."""
    if sort is None:
        return runs
    name = sort.removeprefix("-")
    if name not in (known := field_names()):
        raise unknown_name("field", name, known)
    values = [(field_of(run, name), run) for run in runs]
    have = [pair for pair in values if pair[0] is not None]
    try:
        have.sort(key=lambda pair: pair[0], reverse=sort.startswith("-"))
    except TypeError:
        have.sort(key=lambda pair: str(pair[0]), reverse=sort.startswith("-"))
    return [run for _, run in have] + [run for value, run in values if value is None]


def listing(run: Run | DamagedRun) -> dict[str, Any]:
    """One line of `runs list --json`."""
    if isinstance(run, DamagedRun):
        return {"run": run.name, "status": "damaged", "reason": run.reason}
    return {name: field_of(run, name) for name in _LISTED} | {"tags": field_of(run, "tag"), "note": field_of(run, "note")}


def warn_of_unreadable(entries: Iterable[Run | DamagedRun]) -> None:
    """Warn of the runs that a table leaves out because their records cannot be read, and say why."""
    damaged = [entry for entry in entries if isinstance(entry, DamagedRun)]
    for entry in damaged[:_WARNINGS]:
        console.warn(f"{entry.name} is left out: {entry.reason}")
    if len(damaged) > _WARNINGS:
        console.warn(f"{len(damaged) - _WARNINGS} more are left out: minigpt runs list names them")


def find_readable(store: RunStore, names: Sequence[str]) -> list[Run]:
    """The runs of these names and patterns, each once; warns of those that cannot be read and leaves them out. Raises RunDamaged."""
    found: dict[str, Run] = {}
    problems = []
    for name in names:
        try:
            for run in store.find_all([name]):
                _ = run.config
                for _ in run.metrics():
                    pass
                found[run.name] = run
        except RunDamaged as error:
            problems.append(error)
    if not found:
        raise problems[0]
    for problem in problems:
        console.warn(f"left out: {problem}")
    return list(found.values())


def one_format(*, json: bool, csv: bool, md: bool, latex: bool) -> Form:
    """The output format of these flags. Raises UsageError for more than one flag."""
    asked: dict[Form, bool] = {"json": json, "csv": csv, "markdown": md, "latex": latex}
    if sum(asked.values()) > 1:
        raise UsageError("--json, --csv, --md and --latex cannot be used together: choose one")
    return next((form for form, on in asked.items() if on), "table")


def differences(sides: Sequence[Sequence[Run]], more: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Settings, and the fields in `more`, in which the sides differ: one value for each side, None if its own runs differ."""
    from minigpt_cli.commands.config_fields import settings

    values = {name: [_shared([field_of(run, name) for run in runs]) for runs in sides] for name in dict.fromkeys([*settings(), *more])}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _shared(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def shown_differences(found: Mapping[str, Sequence[Any]]) -> list[tuple[str, list[str]]]:
    """Differences as text for a table."""
    from minigpt_cli.commands.config_fields import show_setting

    return [(name, ["-" if value is None else show_setting(name, value) for value in row]) for name, row in found.items()]
