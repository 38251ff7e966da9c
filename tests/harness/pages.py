"""The README and the pages behind it, and what is said in the package: for tests that hold them to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from typer.main import get_command

from minigpt_cli import cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "minigpt_cli" / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TEXTS = {page: page.read_text("utf-8") for page in PAGES}
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
"""The kind and the content of every fenced block."""


def parsed(words: list[str]) -> None:
    """Read the flags of a command without running it."""
    command: Any = get_command(cli.app)
    if words[0].startswith("-"):
        assert set(words) <= {flag for option in command.params for flag in option.opts}, words
        return
    ctx = command.make_context("minigpt", [])
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(ctx, words)
        ctx = command.make_context(name, [*words], parent=ctx, resilient_parsing=hasattr(command, "commands"))


def anchors(text: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", BLOCKS.sub("", text), re.M)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).replace("`", "").lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@cache
def messages() -> str:
    """Every string of the package: messages, help texts, docstrings."""

    def strings() -> Iterator[str]:
        for path in sorted((ROOT / "minigpt_cli").rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value

    return "\n".join(strings())
