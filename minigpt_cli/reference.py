"""Every command with its flags as one Markdown page, made from the help texts: python -m minigpt_cli.reference

The page is minigpt_cli/docs/reference.md; a test compares the two. It depends only on the commands, not on the terminal or the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from minigpt_cli.commands.help_page import description_of, names_of

PAGE = Path(__file__).resolve().parent / "docs" / "reference.md"
_INTRODUCTION = """# minigpt: commands

Made from the help texts by `python -m minigpt_cli.reference`; change those, not this page.
"""
_MARKUP = re.compile(r"(?<!\\)\[/?[a-z ]*\]")


def page() -> str:
    """The text of reference.md."""
    from minigpt_cli.cli import app

    return "\n".join([_INTRODUCTION, *_sections(get_command(app), "minigpt")]).rstrip() + "\n"


def _sections(command: Any, path: str) -> Iterator[str]:
    """The section of a command, and the sections of its subcommands."""
    yield f"## {path}\n"
    yield _help_text(command.help or "")
    yield from _parameters(command)
    if not hasattr(command, "list_commands"):
        return
    context = command.make_context(path, [], resilient_parsing=True)
    for name in command.list_commands(context):
        _, inner, _ = command.resolve_command(context, [name])
        yield from _sections(inner, f"{path} {name}")


def _help_text(text: str) -> str:
    """A help text with its examples as a block of code."""
    blocks = []
    for block in text.replace("\b\n", "").replace("\\b\n", "").strip().split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].strip() == "Examples:":
            blocks.append("```\n" + "\n".join(line.strip() for line in lines[1:]) + "\n```")
        else:
            blocks.append("\n".join(line.strip() for line in lines))
    return _MARKUP.sub("", "\n\n".join(blocks)) + "\n"


def _parameters(command: Any) -> Iterator[str]:
    """Arguments and flags, one line each."""
    lines = [_line(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    shown = [line for line in lines if not line.startswith(("- `--help", "- `--install-completion", "- `--show-completion"))]
    if shown:
        yield "\n".join(shown) + "\n"


def _line(parameter: Any) -> str:
    return f"- `{names_of(parameter)}` {description_of(parameter)}".rstrip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
