"""Whether a step of the course is done: checks read the records of runs, never the words that were typed. No torch.

Any command that makes such a run counts: with more steps, another name, another order of flags. What is missing is said as a difference.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from minigpt_cli.commands.config_fields import settings, show_value
from minigpt_cli.commands.config_sources import resolve
from minigpt_cli.config import RunConfig, leaves
from minigpt_cli.course.lesson import Needs
from minigpt_cli.display.format import quoted
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation.recipes import by_recipe
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.journal import Event
from minigpt_cli.runstore.store import RunStore

PRESET = "tiny-run"  # of the commands that the lessons show
_APART = ("compute.", "eval.", "lora.", "data.source", "seed", "schema_version", "resume_changes")  # what a lesson does not ask about


class Missing(MiniGPTError):
    """What a step still needs, as a sentence."""


def passing(store: RunStore, events: Sequence[Event], needs: Needs, source: str | None, like: Run | None) -> Sequence[str]:
    """The names of the runs that pass a step whose events these are, from the one that entered it. Raises Missing.

    `source` is the learner's text, `like` the run of `needs.like`.
    """
    changed = [run for run in store.runs() if run.record.place >= events[0].t] if events else []
    if needs.seeds:  # a finished sweep changes nothing when it is run again
        ended = any(event.event == "ran" and event.data["code"] == 0 for event in events)
        return _seeds_of_two(changed or (store.runs() if ended else []), needs.seeds)
    problems = []
    for run in reversed(changed):
        if not (found := _problems(run, needs, source, like)):
            return [run.name]
        problems.append(f"{run.name}: {found[0]}")
    raise Missing(problems[0] if problems else "no run was made or changed since this step began")


def _problems(run: Run, needs: Needs, source: str | None, like: Run | None) -> list[str]:
    """What keeps a run from passing."""
    if run.record.best is None or run.status != "finished":
        step = f" at step {run.record.stop_step}" if run.record.stop_step else ""
        return [f"it stopped before its end{step}: minigpt train --resume {quoted(run.name)} continues it"]
    asked = asked_settings(run)
    if not same_source(run.config, source):
        return [f"it was trained on {' '.join(run.config.data.sources) or 'the default text'}, and the course uses {source or 'that one'}"]
    wanted = {"without": ""} | needs.settings
    found = [_differs(name, value, asked) for name, value in wanted.items() if asked.get(_key(name), "") != value]
    found += [
        f"{name} is {show_value(asked[_key(name)]) if asked[_key(name)] else 'all'}: at most {most:,} here"
        for name, most in needs.most.items()
        if not 0 < asked[_key(name)] <= most
    ]
    if like is not None:
        found += _unlike(run, like, [*needs.settings, *needs.most])
    return found


def _differs(name: str, value: Any, asked: dict[str, Any]) -> str:
    has = asked.get(_key(name))
    if value == "":
        return f"this step needs a model that has all its parts: leave out {settings()[name].flag} {has}"
    return f"this step needs {settings()[name].flag} {value}" + (f", and the run has {show_value(has)}" if has not in (None, "") else "")


def _unlike(run: Run, like: Run, apart: Sequence[str]) -> list[str]:
    """A sentence, if a run differs from another in settings other than these."""
    a, b = asked_settings(run), asked_settings(like)
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    if wrong := [name.rpartition(".")[2] for name in names if name.rpartition(".")[2] not in apart]:
        differs, wanted = _listed([name.rpartition(".")[2] for name in names]), " and ".join(apart)
        return [f"it differs from {like.name} in {differs}; this step needs a difference in {wanted} alone: leave {wrong[0]} as it was"]
    return []


def _listed(names: Sequence[str]) -> str:
    counted = {1: "one thing", 2: "two things", 3: "three things"}.get(len(names), f"{len(names)} things")
    return f"{counted}: {', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}"


def _seeds_of_two(runs: Sequence[Run], seeds: int) -> Sequence[str]:
    """The runs of the two recipes that were trained last with so many seeds. Raises Missing."""
    done = [run for run in runs if run.record.best is not None and run.status == "finished"]
    recipes = sorted(by_recipe(done), key=lambda found: max(run.record.place for run in found))
    enough = [found for found in recipes if len({run.config.seed for run in found}) >= seeds]
    texts = {found[0].record.text_sha256 for found in enough[-2:]}
    if len(enough) >= 2 and len(texts) == 1:
        return [run.name for found in enough[-2:] for run in found]
    if len(texts) == 2:
        raise Missing("the two recipes were trained on different texts: this step needs one text")
    counts = [len({run.config.seed for run in found}) for found in recipes]
    have = f"there are {' and '.join(map(str, counts))}" if counts else "no run was made since this step began"
    raise Missing(f"this step needs two recipes with {seeds} seeds each, and {have}")


def asked_settings(run: Run) -> dict[str, Any]:
    """The settings by dotted name that a lesson may ask about, as they were given. plain is modern here: it has the same formulas."""
    found = leaves(run.config) | {name: value for name, value in (run.record.left_open or {}).items() if "." in name}
    found = {name: value for name, value in found.items() if not name.startswith(_APART)}
    if found["model.arch"] == "plain":
        found["model.arch"] = "modern"
    return {name: value for name, value in found.items() if (name, value) != ("model.without", "")}


def _key(name: str) -> str:
    section = settings()[name].section
    return f"{section}.{name}" if section else name


def same_source(config: RunConfig, source: str | None) -> bool:
    """Whether a run was trained on this text; a path may be written in several ways."""
    given = config.data.sources
    if source is None or len(given) != 1 or not given[0]:
        return not any(given) if source is None else False
    return given[0] == source or os.path.abspath(os.path.expanduser(given[0])) == os.path.abspath(source)


def flags_like(run: Run) -> str:
    """The flags that repeat a run's settings after `--preset tiny-run`; most often none."""
    usual, asked = leaves(resolve({}, preset=PRESET).config), asked_settings(run)
    changed = {name.rpartition(".")[2]: value for name, value in asked.items() if name != "model.arch" and usual.get(name) != value}
    return " ".join(f"{settings()[name].flag} {quoted(show_value(value))}" for name, value in changed.items() if settings()[name].is_typed)
