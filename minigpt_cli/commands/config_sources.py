"""The sources of settings, each overrides the ones before: defaults < preset < config file < MINIGPT_<FIELD> < flags."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minigpt_cli.commands.config_fields import DEFAULT_ARCH, PANELS, settings, show_setting, show_value
from minigpt_cli.commands.plain_words import plainly
from minigpt_cli.config import ARCHITECTURES, ModernConfig, RunConfig, fitting_heads, fitting_width
from minigpt_cli.errors import RunDamaged, UsageError, unknown_name
from minigpt_cli.presets.catalog import read_preset
from minigpt_cli.storage.atomic_io import parse_json

_FILE_LIMIT = 1 << 14  # bytes of a --config file; presets have two thousand, and tomllib takes the square of the dots in a key
_JSON_LIMIT = 1 << 18  # of a run's config.json, which may note many changes


@dataclass(frozen=True)
class Resolved:
    """A configuration and the source of each of its settings."""

    config: RunConfig
    sources: dict[str, str]  # setting → "default", "preset p1_base", "file.toml", "MINIGPT_LR", "--lr"
    explicit: dict[str, Any]  # settings that do not come from the defaults, as given
    notices: list[str] = field(default_factory=list)
    preset: str | None = None

    @property
    def typed(self) -> set[str]:
        """Settings that come from flags or the environment."""
        return {name for name, source in self.sources.items() if source.startswith("MINIGPT_") or source == settings()[name].flag}


@dataclass(frozen=True)
class _Layer:
    label: str
    values: dict[str, Any]
    strict: bool  # whether a setting of another architecture in it is an error

    def source(self, name: str) -> str:
        return {"flags": settings()[name].flag, "environment": settings()[name].variable}.get(self.label, self.label)


def resolve(
    flags: Mapping[str, Any],
    *,
    preset: str | None = None,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    base: tuple[str, Mapping[str, Any]] | None = None,
    planned: bool = False,
) -> Resolved:
    """Merge all sources and check the result. Raises UsageError, one line that names the flag, variable or file.

    `base` is the label and the settings of start weights or of an experiment; they override the defaults only. `planned`: what nobody gave
    will be planned unless there is a preset or a number of steps, so that a width alone may have other heads than the default.
    """
    environment = os.environ if environment is None else environment
    layers = [
        _Layer(base[0], dict(base[1]), strict=False) if base else None,
        _Layer(f"preset {preset}", flatten(read_preset(preset), f"preset {preset}"), strict=False) if preset else None,
        _Layer(str(file), flatten(read_settings_file(file), str(file)), strict=False) if file else None,
        _Layer(
            "environment",
            {s.name: environment[s.variable] for s in settings().values() if s.is_typed and environment.get(s.variable)},
            strict=True,
        ),
        _Layer("flags", dict(flags), strict=True),
    ]
    return _merge([layer for layer in layers if layer], preset, planned=planned)


def override(saved: RunConfig, flags: Mapping[str, Any]) -> RunConfig:
    """A saved configuration with some settings changed by flags. Raises UsageError for a flag of another architecture."""
    tree = saved.model_dump(mode="json")
    return _merge(
        [_Layer("the saved configuration", flatten(tree, "config.json"), strict=True), _Layer("flags", dict(flags), strict=True)], None
    ).config


def _merge(layers: list[_Layer], preset: str | None, *, planned: bool = False) -> Resolved:
    arch = next((str(layer.values["arch"]) for layer in reversed(layers) if "arch" in layer.values), DEFAULT_ARCH)
    if arch not in ARCHITECTURES:
        raise unknown_name("architecture", arch, ARCHITECTURES)
    values: dict[str, Any] = {}
    sources = {name: "default" for name, s in settings().items() if s.section != "model" or name == "arch" or arch in s.fields}
    notices = []
    for layer in layers:
        foreign = [name for name in layer.values if settings()[name].section == "model" and arch not in settings()[name].fields]
        if foreign and (layer.strict or "arch" not in layer.values):
            _refuse_foreign(foreign[0], layer, arch)
        if foreign:
            notices.append(f"{layer.label} is for {layer.values['arch']}; {arch} has no {', '.join(foreign)}, left out")
        for name, value in layer.values.items():
            if name not in foreign:
                values[name] = value
                sources[name] = layer.source(name)
    values["arch"] = arch
    fitted = _fitted(values) if planned and not (preset or values.get("max_steps")) and arch == DEFAULT_ARCH else {}
    return Resolved(_validate(fitted | values, sources), sources, values, notices, preset)


def _fitted(values: Mapping[str, Any]) -> dict[str, int]:
    """Heads for a given width, and a width for given heads, where the defaults do not fit; the plan may choose others."""
    given = {n: int(values[n]) for n in ("n_head", "n_embd", "n_kv_head") if re.fullmatch(" *[1-9][0-9]{0,4} *", str(values.get(n)))}
    model = ModernConfig()
    width, heads, kv_heads = (
        given.get(name, default) for name, default in (("n_embd", model.n_embd), ("n_head", model.n_head), ("n_kv_head", 1))
    )
    if (width % (2 * heads) == 0 and heads % kv_heads == 0) or ("n_head" in values and "n_embd" in values):
        return {}
    if "n_embd" in values:
        fitting = fitting_heads(width, kv_heads)
        return {"n_head": fitting} if fitting else {}
    heads = heads if "n_head" in values else kv_heads
    return {"n_head": heads, "n_embd": fitting_width(width, heads)}


def _refuse_foreign(name: str, layer: _Layer, arch: str) -> None:
    owners = settings()[name].fields
    message = f"{layer.source(name)} belongs to --arch {' and '.join(owners)}"
    raise UsageError(f"{message}, and this run is --arch {arch}: leave out {name} or change --arch")


def _validate(values: Mapping[str, Any], sources: Mapping[str, str]) -> RunConfig:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section = settings()[name].section
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        return RunConfig.model_validate(nested)
    except ValidationError as error:
        raise UsageError("; ".join(_complaints(error.errors(), sources))) from None


def _complaints(problems: Sequence[Any], sources: Mapping[str, str]) -> list[str]:
    """Errors of pydantic as short messages, one for each value; each begins with the flag."""
    said: dict[str, list[str]] = {}
    origins = {}
    for problem in problems:
        name = next((part for part in reversed(problem["loc"]) if part in settings()), None)
        if name is None:  # a check across fields; its message names the flags
            said[plainly(str(problem["msg"]))] = []
            continue
        setting = settings()[name]
        value = f"{setting.flag} {show_value(problem['input'])}"
        said.setdefault(value, []).append(plainly(str(problem["msg"])))
        origins[value] = "" if sources.get(name) in (None, "default", setting.flag) else f" (from {sources[name]})"
    return [f"{value}: {' and '.join(messages)}{origins[value]}" if messages else value for value, messages in said.items()]


def read_settings_file(path: Path) -> dict[str, Any]:
    """The content of a TOML file or of a run's config.json. Raises UsageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            limit = _JSON_LIMIT if path.suffix == ".json" else _FILE_LIMIT
            data = file.read(limit + 1)
        if len(data) > limit:
            raise UsageError(f"--config {path} has more than {limit:,} bytes: it is not a file of settings")
        return parse_json(data, f"--config {path}") if path.suffix == ".json" else tomllib.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"--config {path} is a folder: name a TOML file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path} is not UTF-8 text (byte {error.start})") from None
    except RunDamaged as error:
        raise UsageError(str(error)) from None
    except (ValueError, RecursionError) as error:  # invalid TOML, or a number with more digits than Python converts
        raise UsageError(f"--config {path}: {error}") from None


def flatten(tree: Any, label: str) -> dict[str, Any]:
    """Settings by name from a TOML tree with or without sections. Raises UsageError for an unknown key."""
    if not isinstance(tree, dict):
        raise UsageError(f"{label} is not a table of settings")
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
    return [
        (PANELS[setting.section], name, show_value(setting.value_in(resolved.config)), resolved.sources[name])
        for name, setting in settings().items()
        if name in resolved.sources
    ]


def differing_from_defaults(config: RunConfig) -> list[tuple[str, str]]:
    """Settings that are not the defaults of the configuration's architecture, and their values."""
    plain = resolve({"arch": config.model.arch}, environment={}).config
    own = [s for s in settings().values() if s.section != "model" or config.model.arch in s.fields]
    return [(s.name, show_setting(s.name, s.value_in(config))) for s in own if s.value_in(config) != s.value_in(plain)]
