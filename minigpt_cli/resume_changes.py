"""What was changed in the middle of a run, as `RunConfig.resume_changes` keeps it: STEP:setting=VALUE_BEFORE, with spaces between.

Resuming writes it, and `budget_steps` is written by a time budget: the number of steps that was planned before.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

CHANGES_LIMIT = 10_000  # characters of resume_changes


class Change(NamedTuple):
    """A setting that was changed in the middle of a run."""

    step: int  # steps that were done
    setting: str
    before: str


_CLOCK = "budget_steps"  # the setting of a change that a time budget made
_CHANGE = re.compile(r"([0-9]{1,15}):([a-z0-9_]+)=(\S*)")
_COUNTED = {  # what a schedule reads
    "max_steps": re.compile(r"[0-9]{1,15}"),
    _CLOCK: re.compile(r"[0-9]{1,15}"),
    "lr_scale": re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?(e-[0-9]{1,2})?"),
}


@lru_cache
def parse_changes(text: str) -> tuple[Change, ...]:
    """The changes that `RunConfig.resume_changes` names. Raises ValueError for anything else."""
    found = []
    for part in text.split(" ") if text else []:
        match = _CHANGE.fullmatch(part)
        if match is None or (match[2] in _COUNTED and not _COUNTED[match[2]].fullmatch(match[3])):
            raise ValueError(f"resume_changes has {part!r}: write STEP:setting=VALUE_BEFORE")
        found.append(Change(int(match[1]), match[2], match[3]))
    return tuple(found)


def in_words(text: str) -> str:
    """The changes for people; those of a time budget are one."""
    changes = parse_changes(text)
    asked = [change for change in changes if change.setting != _CLOCK]
    parts = [f"{change.setting} was {change.before or 'empty'} until step {change.step:,}" for change in asked]
    if steps := [change.step for change in changes if change.setting == _CLOCK]:
        parts.append(f"the number of steps followed the clock from step {steps[0]:,}")
    return "; ".join(parts)
