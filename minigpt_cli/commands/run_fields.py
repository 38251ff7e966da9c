"""A run as a flat set of named fields: what --where, --sort and the tables read. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import console
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError, unknown_name
from minigpt_cli.runstore.store import DamagedRun, Run, RunStore

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
)  # fmt: skip
_WARNINGS = 5  # lines about single runs, where hundreds may be damaged
_OF_BEST = {"nats_per_char": "nats_per_char", "val_loss": "nats_per_token", "best_step": "step", "ci95": "ci95"}


def field_names() -> list[str]:
    """Every field that a run may have."""
    from minigpt_cli.commands.config_fields import settings

    own = ["run", "status", "corpus", "text_sha256", "tag", "note", *_OF_RECORD, *_OF_BEST]
    return list(dict.fromkeys([*own, *settings()]))


class RunFields(Mapping[str, Any]):
    """The fields of one run, read when they are asked for."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __getitem__(self, name: str) -> Any:
        record = self.run.record
        if name in _OF_RECORD:
            return getattr(record, name)
        if name in _OF_BEST:
            return getattr(record.best, _OF_BEST[name]) if record.best else None
        if name in ("tag", "note"):
            return _annotations(self.run)[name]
        own = {"run": self.run.name, "corpus": record.corpus.label if record.corpus else None, "text_sha256": record.text_sha256}
        if name == "status":
            return self.run.status
        return own[name] if name in own else self._setting(name)

    def _setting(self, name: str) -> Any:
        from minigpt_cli.commands.config_fields import settings

        try:
            return settings()[name].value_in(self.run.config)
        except AttributeError as error:
            raise KeyError(name) from error

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or `default` where this run has none or cannot be read."""
        try:
            return self[name]
        except (KeyError, MiniGPTError):
            return default

    def __iter__(self) -> Iterator[str]:
        return iter(field_names())

    def __len__(self) -> int:
        return len(field_names())


def _annotations(run: Run) -> dict[str, Any]:
    try:
        annotations = run.annotations
    except MiniGPTError:
        return {"tag": [], "note": ""}
    return {"tag": annotations.tags, "note": annotations.note}


def select(runs: Iterable[Run], *, where: str | None, tags: list[str]) -> list[Run]:
    """The runs that meet the condition and carry every tag. Raises UsageError for a condition that is not understood."""
    from minigpt_cli.commands.run_filter import parse_where

    meets = parse_where(where, field_names()) if where else None
    return [run for run in runs if (not tags or set(tags) <= set(_annotations(run)["tag"])) and (meets is None or meets(RunFields(run)))]


def ordered(runs: list[Run], sort: str | None) -> list[Run]:
    """Runs by a field, `-field` for the largest first; those without it last. Raises UsageError for an unknown field."""
    if sort is None:
        return runs
    name = sort.removeprefix("-")
    if name not in (known := field_names()):
        raise unknown_name("field", name, known)
    have = [(value, run) for run in runs if (value := RunFields(run).get(name)) is not None]
    try:
        have.sort(key=lambda pair: pair[0], reverse=sort.startswith("-"))
    except TypeError:
        have.sort(key=lambda pair: str(pair[0]), reverse=sort.startswith("-"))
    return [run for _, run in have] + [run for run in runs if RunFields(run).get(name) is None]


def listing(run: Run | DamagedRun) -> dict[str, Any]:
    """One line of `runs list --json`."""
    if isinstance(run, DamagedRun):
        return {"run": run.name, "status": "damaged", "reason": run.reason}
    fields = RunFields(run)
    return {name: fields.get(name) for name in _LISTED} | {"tags": fields["tag"], "note": fields["note"]}


def warn_of_unreadable(entries: Iterable[Run | DamagedRun]) -> None:
    """Say which runs a table leaves out because their records cannot be read, and why."""
    damaged = [entry for entry in entries if isinstance(entry, DamagedRun)]
    for entry in damaged[:_WARNINGS]:
        console.warn(f"{entry.name} is left out: {entry.reason}")
    if len(damaged) > _WARNINGS:
        console.warn(f"{len(damaged) - _WARNINGS} more are left out: minigpt runs list names them")


def find_readable(store: RunStore, names: Sequence[str]) -> list[Run]:
    """The runs of these names, each once; one that cannot be read is named with the reason and left out. Raises RunDamaged if none can."""
    found: dict[str, Run] = {}
    problems = []
    for name in names:
        try:
            run = store.find(name)
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


def one_format(*, json: bool, csv: bool, md: bool) -> Form:
    """The way of printing that was asked for. Raises UsageError for more than one."""
    asked: dict[Form, bool] = {"json": json, "csv": csv, "markdown": md}
    if sum(asked.values()) > 1:
        raise UsageError("--json, --csv and --md exclude each other: choose one")
    return next((form for form, on in asked.items() if on), "table")


def differences(sides: Sequence[Sequence[Run]], more: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Settings, and other fields named in `more`, in which sides differ: a value for each side, None where its own runs differ."""
    from minigpt_cli.commands.config_fields import settings

    fields = [[RunFields(run) for run in runs] for runs in sides]
    values = {name: [_shared([run.get(name) for run in runs]) for runs in fields] for name in dict.fromkeys([*settings(), *more])}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _shared(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def shown_differences(found: Mapping[str, Sequence[Any]]) -> list[tuple[str, list[str]]]:
    """The same as text."""
    from minigpt_cli.commands.config_fields import show_value

    return [(name, ["-" if value is None else show_value(value) for value in row]) for name, row in found.items()]
