"""The bridge from the pydantic config to flags: one flag a field, none written twice, and the layers that give a field its value.

Layers, each over the one before: defaults < preset < config file < MINIGPT_<FIELD> < flags. Below, a *setting* is a leaf
field of RunConfig by its own name (`n_layer`), which is its flag, its environment variable and its TOML key at once.
"""

from __future__ import annotations

import inspect
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import typer
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from minigpt_cli import registry
from minigpt_cli.commands.options import complete_tokenizer
from minigpt_cli.config import BigramConfig, ClassicConfig, ModernConfig, MoEConfig, RunConfig
from minigpt_cli.errors import UsageError, unknown_name
from minigpt_cli.recipes import read_preset

MODELS: dict[str, type[BaseModel]] = {"bigram": BigramConfig, "classic": ClassicConfig, "modern": ModernConfig, "moe": MoEConfig}
PANELS = {
    "model": "Model",
    "data": "Data",
    "optim": "Optimisation",
    "eval": "Evaluation and stopping",
    "compute": "Computation",
    "lora": "Fine-tuning",
    "": "Run",
}
_DEFAULT_ARCH = ModernConfig.model_fields["arch"].default
_COMPLETION = {"tokenizer": complete_tokenizer}
_Command = Callable[..., Any]
_METAVARS = {"tokenizer": "char|byte|bpe|gpt2|FILE"}


@dataclass(frozen=True)
class Setting:
    """A leaf field of RunConfig: where it sits and in which architectures."""

    name: str
    section: str  # "model", "data", … or "" at the top
    fields: Mapping[str, FieldInfo]  # by architecture; one entry "" outside the model
    annotation: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return f"MINIGPT_{self.name.upper()}"

    @property
    def info(self) -> FieldInfo:
        return self.fields.get(_DEFAULT_ARCH) or next(iter(self.fields.values()))


@cache
def settings() -> dict[str, Setting]:
    """Every setting by name, in the order of config.py."""
    found: dict[str, Setting] = {}

    def add(name: str, section: str, fields: dict[str, FieldInfo], annotation: Any) -> None:
        if name in found:
            raise TypeError(f"two config fields are named {name!r}, so they would share a flag")
        found[name] = Setting(name, section, fields, annotation)

    for section, info in RunConfig.model_fields.items():
        if section == "model":
            add("arch", "model", {arch: model.model_fields["arch"] for arch, model in MODELS.items()}, Literal[tuple(MODELS)])
            for name in dict.fromkeys(name for model in MODELS.values() for name in model.model_fields if name != "arch"):
                fields = {arch: model.model_fields[name] for arch, model in MODELS.items() if name in model.model_fields}
                add(name, "model", fields, next(iter(fields.values())).annotation)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for name, leaf in info.annotation.model_fields.items():
                add(name, section, {"": leaf}, leaf.annotation)
        elif section != "schema_version":
            add(section, "", {"": info}, info.annotation)
    return found


# Flags


def with_settings(*, only: tuple[str, ...] | None = None, leave_out: tuple[str, ...] = ()) -> Callable[[_Command], _Command]:
    """Give a Typer command a flag for each setting; it receives those that were typed as `settings: dict[str, Any]`.

    `only` names the sections to take ("data", …) or single settings; `leave_out` names settings that the command takes in another way.
    """

    def decorate(command: _Command) -> _Command:
        own = inspect.signature(command, eval_str=True)
        chosen = [s for s in settings().values() if s.name not in leave_out and (only is None or s.section in only or s.name in only)]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "settings"]
        parameters += [_parameter(setting) for setting in chosen]

        @wraps(command)
        def wrapped(**values: Any) -> Any:
            typed = {s.name: value for s in chosen if (value := values.pop(s.name, None)) is not None}
            return command(**values, settings=typed)

        wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def _parameter(setting: Setting) -> inspect.Parameter:
    kind = _flag_type(setting)
    lower, upper = _bounds(setting)
    flag = setting.flag if kind is not bool else f"{setting.flag}/--no-{setting.flag[2:]}"
    option = typer.Option(
        flag,
        help=_help(setting),
        show_default=False,
        rich_help_panel=PANELS[setting.section],
        min=lower if kind in (int, float) else None,
        max=upper if kind in (int, float) else None,
        metavar="" if kind is bool else _METAVARS.get(setting.name) or _metavar(setting, kind),
        autocompletion=_COMPLETION.get(setting.name),
    )
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def _flag_type(setting: Setting) -> Any:
    """The type that Typer parses: numbers, switches and choices as such; what only pydantic understands as text."""
    if any(isinstance(entry, BeforeValidator) for entry in setting.info.metadata):
        return str
    plain = setting.annotation in (bool, int, float, str) or get_origin(setting.annotation) is Literal
    return setting.annotation if plain else str


def _metavar(setting: Setting, kind: Any) -> str | None:
    if get_origin(setting.annotation) in (Union, UnionType):
        return "|".join(str(choice) for part in get_args(setting.annotation) for choice in (get_args(part) or ("NUMBER",)))
    if kind is str and setting.annotation is float:
        return "DURATION"
    return "N" if kind is int else "X" if kind is float else None


def _bounds(setting: Setting) -> tuple[Any, Any]:
    """The inclusive bounds that hold for every architecture; exclusive ones are left to pydantic."""
    lower = [m.ge for info in setting.fields.values() for m in info.metadata if isinstance(m, annotated_types.Ge)]
    upper = [m.le for info in setting.fields.values() for m in info.metadata if isinstance(m, annotated_types.Le)]
    return (min(lower) if lower else None), (max(upper) if upper else None)  # type: ignore[type-var]


def _help(setting: Setting) -> str:
    if setting.name == "arch":
        text = "Architecture: " + "; ".join(f"{arch}: {(model.__doc__ or '').rstrip('.')}" for arch, model in MODELS.items()) + "."
    else:
        text = setting.info.description or ""
    if 0 < len(setting.fields) < len(MODELS) and setting.section == "model" and "bigram" not in setting.fields and len(setting.fields) < 3:
        text += f" ({', '.join(setting.fields)} only.)"
    text = text.replace("[", "\\[")
    return f"{text} [dim]\\[{_default_text(setting)}][/dim]"


def _default_text(setting: Setting) -> str:
    if setting.name == "arch":
        return str(_DEFAULT_ARCH)
    common = show_value(setting.info.get_default(call_default_factory=True))
    others = {show_value(info.get_default(call_default_factory=True)): arch for arch, info in setting.fields.items()}
    return ", ".join([common, *(f"{arch}: {text}" for text, arch in others.items() if text != common)])


def show_value(value: Any) -> str:
    """A setting's value as a person would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if value != "" else "''"


# Layers


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
        _Layer("environment", {s.name: environment[s.variable] for s in settings().values() if environment.get(s.variable)}, chosen=True),
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
    arch = next((str(layer.values["arch"]) for layer in reversed(layers) if "arch" in layer.values), _DEFAULT_ARCH)
    if arch not in MODELS:
        raise unknown_name("architecture", arch, registry.ARCHITECTURES)
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
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"--config {path} is a folder: name a TOML file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path} is not UTF-8 text (byte {error.start})") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, RecursionError) as error:
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
        value = getattr(getattr(config, setting.section) if setting.section else config, name)
        rows.append((PANELS[setting.section], name, show_value(value), resolved.sources[name]))
    return rows


def differing_from_defaults(config: RunConfig) -> list[tuple[str, str]]:
    """Settings that are not the defaults of the configuration's architecture, and their values."""
    plain = resolve({"arch": config.model.arch}, environment={}).config
    found = []
    for name, setting in settings().items():
        place, default = (getattr(c, setting.section) if setting.section else c for c in (config, plain))
        if hasattr(place, name) and getattr(place, name) != getattr(default, name):
            found.append((name, show_value(getattr(place, name))))
    return found
