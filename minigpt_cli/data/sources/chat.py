"""A conversation as a row of a .jsonl file.

A row is `{"messages": [{"role": "user", "content": "…"}, …]}` (roles system, user, assistant) or `{"prompt": "…",
"completion": "…"}`. Each is given in the template of data/chat.py, of which the answers are learned.
"""

from __future__ import annotations

from typing import Any

from minigpt_cli.data.chat import ROLES, TOKENS, Message
from minigpt_cli.errors import UsageError


def is_conversation(row: Any, text_field: str = "text") -> bool:
    """Whether a row is meant as a conversation, by its fields; not where another field than usual is asked for as its text."""
    asked = text_field != "text" and isinstance(row, dict) and text_field in row
    return not asked and isinstance(row, dict) and ("messages" in row or ("prompt" in row and "completion" in row))


def messages_of(row: Any, where: str) -> list[Message]:
    """The conversation of a row. Raises UsageError that says `where` it is."""
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
