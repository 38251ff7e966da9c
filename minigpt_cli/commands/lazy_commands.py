"""Commands that are imported when they run, not when they are listed: `minigpt --help` imports none of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from minigpt_cli.commands.help_page import with_plain_help


class Mount(NamedTuple):
    """A command that is not imported yet."""

    target: str  # "module:attribute": a function with a Typer signature, or a Typer app
    summary: str  # its line in the list of commands


class LazyGroup(TyperGroup):
    """A group whose commands may be mounts; they are listed from their summaries and imported when resolved."""

    mounts: ClassVar[dict[str, Mount]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, mount in self.mounts.items():
            self.commands[name] = TyperCommand(name, help=mount.summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.mounts:
            command = load_mount(name, self.mounts[name])
        return name, command, rest


def lazy_group(mounts: dict[str, Mount]) -> type[LazyGroup]:
    """The group class that lists `mounts`, for `typer.Typer(cls=...)`."""
    return type("LazyGroup", (LazyGroup,), {"mounts": mounts})


def load_mount(name: str, mount: Mount) -> Any:
    """Import what `mount` names and make it a command called `name`."""
    module, _, attribute = mount.target.partition(":")
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name)(target)
        target = app
    command = get_command(target)
    command.name = name
    return with_plain_help(command)
