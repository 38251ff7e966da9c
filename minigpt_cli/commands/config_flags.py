"""Typer flags made from the pydantic configuration: one flag for each setting, with its help, bounds, choices and panel."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import typer
from pydantic import BeforeValidator

from minigpt_cli.commands.config_fields import DEFAULT_ARCH, PANELS, Setting, settings, show_value
from minigpt_cli.commands.options import complete_tokenizer
from minigpt_cli.config import ARCHITECTURES

_COMPLETION = {"tokenizer": complete_tokenizer}
_Command = Callable[..., Any]
_METAVARS = {
    "tokenizer": "char|byte|bpe|gpt2|FILE",
    "documents": "auto|file|lines|MARK",
    "text_field": "NAME",
    "encoding": "NAME",
    "include": "GLOB",
    "exclude": "GLOB",
    "sample_every": "N|auto",
}


def with_settings(*, only: tuple[str, ...] | None = None, leave_out: tuple[str, ...] = ()) -> Callable[[_Command], _Command]:
    """Give a Typer command a flag for each setting; it receives the given ones as `settings: dict[str, Any]`.

    `only` names the sections to take ("data", …) or single settings; `leave_out` names settings that the command takes in another way.
    """

    def decorate(command: _Command) -> _Command:
        own = inspect.signature(command, eval_str=True)
        typed = [s for s in settings().values() if s.is_typed and s.name not in leave_out]
        chosen = [s for s in typed if only is None or s.section in only or s.name in only]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "settings"]
        parameters += [_parameter(setting) for setting in chosen]

        @wraps(command)
        def wrapped(**values: Any) -> Any:
            typed = {s.name: value for s in chosen if (value := values.pop(s.name, None)) not in (None, [])}
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
        rich_help_panel=PANELS[setting.section],
        min=lower if kind in (int, float) else None,
        max=upper if kind in (int, float) else None,
        metavar="" if kind is bool else _METAVARS.get(setting.name) or _metavar(setting, kind),
        autocompletion=_COMPLETION.get(setting.name),
    )
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def _flag_type(setting: Setting) -> Any:
    """The type that Typer parses: numbers, switches and choices; text for types that only pydantic parses."""
    if get_origin(setting.annotation) is tuple:
        return list[str]
    if any(isinstance(entry, BeforeValidator) for entry in setting.info.metadata):
        return str
    plain = setting.annotation in (bool, int, float, str) or get_origin(setting.annotation) is Literal
    return setting.annotation if plain else str


def _metavar(setting: Setting, kind: Any) -> str | None:
    if get_origin(setting.annotation) in (Union, UnionType):
        parts = get_args(setting.annotation)
        return "|".join(str(choice) for part in parts for choice in (get_args(part) if get_origin(part) is Literal else ("NUMBER",)))
    if kind is str and setting.annotation is float:
        return "DURATION"
    return "N" if kind is int else "X" if kind is float else None


def _bounds(setting: Setting) -> tuple[Any, Any]:
    """The inclusive bounds that hold for every architecture; pydantic checks exclusive ones."""
    lower = [m.ge for info in setting.fields.values() for m in info.metadata if isinstance(m, annotated_types.Ge)]
    upper = [m.le for info in setting.fields.values() for m in info.metadata if isinstance(m, annotated_types.Le)]
    return (min(lower) if lower else None), (max(upper) if upper else None)  # type: ignore[type-var]


def _help(setting: Setting) -> str:
    if setting.name == "arch":
        text = "Architecture: " + "; ".join(f"{arch}: {(model.__doc__ or '').rstrip('.')}" for arch, model in ARCHITECTURES.items()) + "."
    else:
        text = setting.info.description or ""
    if setting.section == "model" and len(setting.fields) < len(ARCHITECTURES) - 1:
        text += f" ({', '.join(setting.fields)} only.)"
    text = text.replace("[", "\\[")
    return f"{text} [dim]\\[{_default_text(setting)}][/dim]"


def _default_text(setting: Setting) -> str:
    if setting.name == "arch":
        return str(DEFAULT_ARCH)
    common = show_value(setting.info.get_default(call_default_factory=True))
    others = {show_value(info.get_default(call_default_factory=True)): arch for arch, info in setting.fields.items()}
    return ", ".join([common, *(f"{arch}: {text}" for text, arch in others.items() if text != common)])
