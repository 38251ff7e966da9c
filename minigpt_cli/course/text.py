"""The learner's own text: the path as it is typed or dragged into the terminal. No torch."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from minigpt_cli.commands.config_sources import resolve
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.errors import TextTooShort, UsageError

SHORT = 50_000  # characters to train on: with fewer a model soon recites


def source_in(typed: str) -> str | None:
    """The source that was typed or dragged: an absolute path, or what else minigpt train takes; None for an empty line."""
    typed = typed.strip()
    for name in _readings(typed):
        if name and (path := Path(name).expanduser()).exists():
            return os.path.abspath(path)
    return typed or None


def _readings(typed: str) -> list[str]:
    """What the line may mean: itself, without quotes and backslashes as terminals add them, or the path of an address file://."""
    found = [typed]
    with suppress(ValueError):
        found.append(" ".join(shlex.split(typed)))
    return [*found, *(unquote(urlsplit(name).path) for name in found if name.startswith("file://"))]


def shown(source: str) -> str:
    """The source as a command shows it: a path in this folder without the folder."""
    here = os.getcwd()
    return os.path.relpath(source, here) if source.startswith(here + os.sep) else source


def dataset(source: str | None) -> Dataset:
    """The text, prepared as training prepares it. Raises UsageError for a text that the course cannot use."""
    found = prepared(resolve({"source": source} if source else {}).config.data)
    if found.chats:
        raise UsageError("this holds conversations, and the course needs a text such as a book: name another")
    if found.val.n_chars < 1000 or found.train.n_chars < 3000:
        raise TextTooShort(f"this text has {found.n_chars:,} characters, and the course needs 10,000, better {SHORT:,}: name a longer one")
    return found
