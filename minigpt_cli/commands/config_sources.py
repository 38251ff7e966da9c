"""Where a setting gets its value: layers, each over the one before: defaults < preset < config file < MINIGPT_<FIELD> < flags."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minigpt_cli.commands.config_fields import DEFAULT_ARCH, PANELS, settings, show_value
from minigpt_cli.config import ARCHITECTURES, RunConfig
from minigpt_cli.errors import RunDamaged, UsageError, unknown_name
from minigpt_cli.presets.catalog import read_preset
from minigpt_cli.storage.atomic_io import parse_json

_FILE_LIMIT = 1 << 14  # bytes of a --config file; presets have two thousand, and tomllib takes the square of the dots in a key


@dataclass(frozen=True)
class Resolved:
    """A configuration, and where each of its settings came from."""

    config: RunConfig
    sources: dict[str, str]  # setting → "default", "preset p1_base", "file.toml", "MINIGPT_LR", "--lr"
    explicit: dict[str, Any]  # what any layer above the defaults set, as given
    notices: list[str] = field(default_factory=list)
    preset: str | None = None


@dataclass(frozen=True)
class _Layer:
    label: str
    values: dict[str, Any]
    chosen: bool  # whether it was written for this very command line, so that an inapplicable setting in it is a mistake

    def source(self, name: str) -> str:
        return {"flags": settings()[name].flag, "environment": settings()[name].variable}.get(self.label, self.label)


def resolve(
    flags: Mapping[str, Any],
    *,
    preset: str | None = None,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    beneath: tuple[str, Mapping[str, Any]] | None = None,
) -> Resolved:
    """Lay the layers over each other and check the result. Raises UsageError, one line that names the flag, variable or file.

    `beneath` is a label and settings just over the defaults: those of weights that a run begins from.
    """
    environment = os.environ if environment is None else environment
    layers = [
        _Layer(beneath[0], dict(beneath[1]), chosen=False) if beneath else None,
        _Layer(f"preset {preset}", flatten(read_preset(preset), f"preset {preset}"), chosen=False) if preset else None,
        _Layer(str(file), flatten(read_settings_file(file), str(file)), chosen=False) if file else None,
        _Layer(
            "environment",
            {s.name: environment[s.variable] for s in settings().values() if s.is_typed and environment.get(s.variable)},
            chosen=True,
        ),
        _Layer("flags", dict(flags), chosen=True),
    ]
    return _merge([layer for layer in layers if layer], preset)


def override(saved: RunConfig, flags: Mapping[str, Any]) -> RunConfig:
    """A saved configuration with some settings changed by flags. Raises UsageError for a flag of another architecture."""
    tree = saved.model_dump(mode="json")
    return _merge(
        [_Layer("the saved configuration", flatten(tree, "config.json"), chosen=True), _Layer("flags", dict(flags), chosen=True)], None
    ).config


def _merge(layers: list[_Layer], preset: str | None) -> Resolved:
    arch = next((str(layer.values["arch"]) for layer in reversed(layers) if "arch" in layer.values), DEFAULT_ARCH)
    if arch not in ARCHITECTURES:
        raise unknown_name("architecture", arch, ARCHITECTURES)
    values: dict[str, Any] = {}
    sources = {name: "default" for name, s in settings().items() if s.section != "model" or name == "arch" or arch in s.fields}
    notices = []
    for layer in layers:
        foreign = [name for name in layer.values if settings()[name].section == "model" and arch not in settings()[name].fields]
        if foreign and (layer.chosen or "arch" not in layer.values):
            _refuse_foreign(foreign[0], layer, arch)
        if foreign:
            notices.append(f"{layer.label} is for {layer.values['arch']}; {arch} has no {', '.join(foreign)}, left out")
        for name, value in layer.values.items():
            if name not in foreign:
                values[name] = value
                sources[name] = layer.source(name)
    values["arch"] = arch
    return Resolved(_validate(values, sources), sources, values, notices, preset)


def _refuse_foreign(name: str, layer: _Layer, arch: str) -> None:
    owners = settings()[name].fields
    where = f"{layer.source(name)} belongs to --arch {' and '.join(owners)}"
    raise UsageError(f"{where}, and this run is --arch {arch}: leave out {name} or change --arch")


def _validate(values: Mapping[str, Any], sources: Mapping[str, str]) -> RunConfig:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section = settings()[name].section
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        return RunConfig.model_validate(nested)
    except ValidationError as error:
        raise UsageError("; ".join(_complaint(problem, sources) for problem in error.errors())) from None


def _complaint(problem: Any, sources: Mapping[str, str]) -> str:
    """pydantic's finding as a few words that begin with what the person wrote."""
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    name = next((part for part in reversed(problem["loc"]) if part in settings()), None)
    if name is None:  # a check across fields; its message names the flags
        return message
    setting = settings()[name]
    origin = "" if sources.get(name) in (None, "default", setting.flag) else f" (from {sources[name]})"
    return f"{setting.flag} {show_value(problem['input'])}: {message}{origin}"


def read_settings_file(path: Path) -> dict[str, Any]:
    """What a TOML file, or a run's config.json, holds. Raises UsageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
        if len(data) > _FILE_LIMIT:
            raise UsageError(f"--config {path} has more than {_FILE_LIMIT:,} bytes: it is no file of settings")
        return parse_json(data, f"--config {path}") if path.suffix == ".json" else tomllib.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"--config {path} is a folder: name a TOML file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path} is not UTF-8 text (byte {error.start})") from None
    except RunDamaged as error:
        raise UsageError(str(error)) from None
    except (ValueError, RecursionError) as error:  # what tomllib refuses, and a number of more digits than Python converts
        raise UsageError(f"--config {path}: {error}") from None


def flatten(tree: Any, label: str) -> dict[str, Any]:
    """Settings of a TOML tree, which may group them by section or not. Raises UsageError for a key that is none."""
    if not isinstance(tree, dict):
        raise UsageError(f"{label} holds no table of settings")
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "schema_version":
            continue
        if key in PANELS and isinstance(value, dict):
            flat |= flatten(value, label)
        elif key in settings():
            flat[key] = value
        else:
            raise UsageError(f"{label}: {unknown_name('setting', key, settings())}")
    return flat


def layer_lines(resolved: Resolved) -> list[tuple[str, str, str, str]]:
    """Section, setting, value and source of every setting, in the order of config.py."""
    config = resolved.config
    rows = []
    for name, setting in settings().items():
        if name not in resolved.sources:
            continue
        rows.append((PANELS[setting.section], name, show_value(setting.value_in(config)), resolved.sources[name]))
    return rows


def differing_from_defaults(config: RunConfig) -> list[tuple[str, str]]:
    """Settings that are not the defaults of the configuration's architecture, and their values."""
    plain = resolve({"arch": config.model.arch}, environment={}).config
    own = [s for s in settings().values() if s.section != "model" or config.model.arch in s.fields]
    return [(s.name, show_value(s.value_in(config))) for s in own if s.value_in(config) != s.value_in(plain)]
