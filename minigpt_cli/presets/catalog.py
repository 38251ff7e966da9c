"""Presets: presets/*.toml, each with only the settings that differ from the defaults. Reading one imports only tomllib."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

from minigpt_cli.errors import unknown_name

_FOLDER = files("minigpt_cli") / "presets"


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """The settings of preset `name`, as TOML holds them. Raises UsageError, with a suggestion, for an unknown name."""
    return tomllib.loads(_text(name))


def preset_summary(name: str) -> str:
    """The first line of the preset's file: what it is for."""
    first = _text(name).splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _text(name: str) -> str:
    if name not in (known := preset_names()):
        raise unknown_name("preset", name, known)
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
