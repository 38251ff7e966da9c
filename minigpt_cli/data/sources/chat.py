"""Conversations as documents: a .jsonl file, a conversation a line.

A line is `{"messages": [{"role": "user", "content": "…"}, …]}` (roles system, user, assistant) or `{"prompt": "…",
"completion": "…"}`. Each is given in the template of chat.py, of which the answers are learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from minigpt_cli.data.chat import ROLES, TOKENS, Message, in_pieces
from minigpt_cli.data.sources.contract import Document
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.storage.atomic_io import explained, parse_json
from minigpt_cli.storage.downloads import Report

LINE_LIMIT = 16 << 20  # bytes


class ChatFile:
    """A .jsonl file of conversations."""

    marks = TOKENS
    split_by: Literal["conversation"] = "conversation"

    def __init__(self, path: Path) -> None:
        """Raises UsageError if there is no such file."""
        if not path.is_file():
            raise UsageError(f"no such file: {path}" if not path.exists() else f"{path} is not a file")
        self.path, self.label = path, path.name
        self.notices: list[str] = []

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size

    def fetch(self, report: Report) -> None:
        """Nothing to do: the file is here."""

    def documents(self) -> Iterator[Document]:
        """A document for each conversation. Raises UsageError that names a line that holds none."""
        for number, messages in enumerate(conversations(self.path), 1):
            yield Document(f"{self.label}:{number}", in_pieces(messages))


def conversations(path: Path) -> Iterator[list[Message]]:
    """The conversations of a .jsonl file, line by line. Raises UsageError that names the line."""
    with explained("read"), path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_LIMIT + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > LINE_LIMIT:
                raise UsageError(f"{where} has more than {LINE_LIMIT:,} bytes")
            if line.strip():
                yield _conversation(line, where)


def _conversation(line: bytes, where: str) -> list[Message]:
    try:
        row = parse_json(line, where)
    except RunDamaged as error:
        raise UsageError(str(error)) from error
    if isinstance(row, dict) and "prompt" in row and "completion" in row:
        messages: Any = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    else:
        messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where} has neither messages nor prompt and completion")
    found = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise UsageError(f"{where}: a message needs a role ({', '.join(ROLES)}) and a content that is text")
        if mark := next((token for token in TOKENS if token in content), None):
            raise UsageError(f"{where}: a message holds {mark}, which is reserved for the template")
        found.append((role, content))
    if not any(role == "assistant" for role, _ in found):
        raise UsageError(f"{where} has no answer (a message of the assistant) to learn from")
    return found
