"""Help pages as plain text: examples first, and each flag with its description across the width of the terminal."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections import defaultdict
from functools import partial
from typing import Any

import typer

from minigpt_cli.display import console

EVERYDAY = {
    "train": (
        "sources", "preset", "name", "resume", "init_from", "size", "dry_run", "experiment", "sweep", "seeds", "search", "json", "help_all",
        "arch", "n_layer", "n_head", "n_embd", "block_size", "dropout", "tokenizer", "batch_size", "lr", "max_steps", "time_budget",
        "eval_every", "patience", "device", "seed",
    )
}  # fmt: skip
_MARKUP = re.compile(r"(?<!\\)\[/?[a-z ]*\]")
_WIDEST = 110
_NAMES = 24  # columns of flags; a longer one has a line of its own


def with_plain_help(command: Any) -> Any:
    """The command with help pages of this module, and its subcommands too."""
    command.format_help = partial(_write, command)
    for inner in getattr(command, "commands", {}).values():
        with_plain_help(inner)
    return command


def show_everything(ctx: typer.Context, wanted: bool) -> None:
    """The callback of --help-all."""
    if wanted:
        typer.echo(page(ctx.command, ctx, everything=True))
        raise typer.Exit


def _write(command: Any, ctx: Any, formatter: Any) -> None:
    formatter.write(page(command, ctx))


def page(command: Any, ctx: Any, *, everything: bool = False) -> str:
    """The help page of a command: with its everyday flags, or with `everything`."""
    width = min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)
    parameters = [p for p in command.get_params(ctx) if not getattr(p, "hidden", False)]
    if (everyday := EVERYDAY.get(command.name)) and not everything:
        parameters = [p for p in parameters if p.name in everyday or p.name == "help"]
    usage = f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}"
    lines = [*textwrap.wrap(usage, width, subsequent_indent="  "), "", *_text(command.help or "", width)]
    panels: dict[str, list[Any]] = defaultdict(list)
    for parameter in parameters:
        argument = parameter.param_type_name == "argument"
        panels["Arguments" if argument else getattr(parameter, "rich_help_panel", None) or "Options"].append(parameter)
    for title, members in panels.items():
        lines += ["", _bold(title)]
        for member in members:
            lines += _entry(names_of(member), description_of(member), width)
    inner: dict[str, Any] = getattr(command, "commands", {})
    lines += ["", _bold("Commands")] if inner else []
    for name, subcommand in inner.items():
        lines += _entry(name, subcommand.get_short_help_str(200), width)
    if everyday and not everything:
        lines += ["", *_wrapped(f"Values in brackets are the defaults. Every flag: {ctx.command_path} --help-all", width)]
    return "\n".join(lines) + "\n"


def names_of(parameter: Any) -> str:
    """The flags of a parameter with the placeholder of its value, or an argument's name."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    kind = "" if parameter.is_flag else f" {parameter.metavar or _choices(parameter)}"
    return ", ".join([*parameter.opts, *parameter.secondary_opts]) + kind.rstrip()


def description_of(parameter: Any) -> str:
    """What a parameter does, on one line."""
    text = " ".join((getattr(parameter, "help", None) or "").split())
    return _MARKUP.sub("", text).replace("\\[", "[")


def _choices(parameter: Any) -> str:
    """The placeholder of a flag without a metavar: its choices, or TEXT."""
    described = getattr(parameter, "type_descriptor", None) or getattr(parameter, "type", None)
    return "|".join(str(choice) for choice in getattr(described, "choices", None) or ()) or "TEXT"


def _text(help_text: str, width: int) -> list[str]:
    """A docstring: a block that begins with \\b line by line, other paragraphs in lines of whole words."""
    lines: list[str] = []
    for block in inspect.cleandoc(help_text).split("\n\n"):
        first, _, rest = block.partition("\n")
        if first.strip(" ") == "\b":
            lines += ["", *(part for line in textwrap.dedent(rest).splitlines() for part in _example(line.rstrip(), width))]
        else:
            lines += ["", *_wrapped(_MARKUP.sub("", " ".join(block.split())), width)]
    return lines[1:]


def _example(line: str, width: int) -> list[str]:
    """A command with what it does behind it, or under it where both are too long for a line."""
    command, gap, does = line.strip().partition("  ")
    if len(line) <= width or not gap:
        return [line]
    return [f"  {command}", *(f"      {part}" for part in _wrapped(does.strip(), width - 6))]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(30, width), break_long_words=False, break_on_hyphens=False)


def _entry(names: str, description: str, width: int) -> list[str]:
    """A flag and its description beside it, or under it if the flag is long."""
    text = _wrapped(description, width - _NAMES - 4)
    if len(names) > _NAMES:
        return [f"  {_bold(names)}", *(" " * (_NAMES + 4) + line for line in text)]
    first, *rest = text or [""]
    return [f"  {_bold(names)}{' ' * (_NAMES - len(names))}  {first}".rstrip(), *(" " * (_NAMES + 4) + line for line in rest)]


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if console.use_colour(sys.stdout) else text
