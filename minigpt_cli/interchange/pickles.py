"""nanoGPT's meta.pkl as plain data, without unpickling: a reader for the few instructions that such a file needs. No torch.

A pickle is a program for a small stack machine, and Python's reader runs every function that it names. This reader can only
build dictionaries of integers and strings; any other instruction is an error.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from minigpt_cli.errors import UsageError
from minigpt_cli.storage import atomic_io

META_LIMIT = 16 << 20  # bytes
_MOST = 4_000_000  # instructions: both tables of 600,000 characters
_CONSTANTS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_IGNORED = {"PROTO", "FRAME"}
_REMEMBER = {"BINPUT", "LONG_BINPUT", "PUT"}
_RECALL = {"BINGET", "LONG_BINGET", "GET"}


def read_meta(path: Path) -> list[str]:
    """The characters of a nanoGPT meta.pkl, by id. Raises UsageError for any other content."""
    try:
        meta = read_plain(atomic_io.read_bounded(path, META_LIMIT), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(itos, dict) or not itos:
        raise UsageError(f"{path} is not the meta.pkl of a character model: it has no table 'itos'")
    if sorted(i for i in itos if isinstance(i, int)) != list(range(len(itos))):
        raise UsageError(f"{path} is not the meta.pkl of a character model: its ids are not 0 to {len(itos) - 1}")
    characters = [itos[i] for i in range(len(itos))]
    if not all(isinstance(c, str) and len(c) == 1 and _is_character(c) for c in characters) or len(set(characters)) < len(characters):
        raise UsageError(f"{path} is not the meta.pkl of a character model: its tokens are not single, distinct characters")
    return characters


def _is_character(c: str) -> bool:
    return not "\ud800" <= c <= "\udfff"  # halves of surrogate pairs


def read_plain(data: bytes, where: str) -> Any:
    """The dictionary of integers, strings and dictionaries in a pickle. Raises UsageError naming `where` at any other instruction."""
    stack: list[Any] = []
    marks: list[int] = []  # where in the stack
    memo: dict[int, Any] = {}
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            name = opcode.name
            if number == _MOST:
                raise UsageError(f"{where} has more than {_MOST:,} instructions, where only a table of characters belongs")
            if name in _IGNORED:
                continue
            if name == "STOP":
                return stack.pop()
            if name in _CONSTANTS:
                stack.append(argument)
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "DICT":
                stack.append(_pairs(stack, marks))
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _REMEMBER:
                memo[int(argument or 0)] = stack[-1]
            elif name in _RECALL:
                stack.append(memo[int(argument or 0)])
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            elif name == "SETITEMS":
                pairs = _pairs(stack, marks)
                stack[-1].update(pairs)
            else:
                raise UsageError(f"{where} is refused: it is a pickle that asks for {name}, where only a table of characters belongs")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError) as error:
        raise UsageError(f"{where} is not a sound pickle: {atomic_io.one_line(str(error), 100)}") from error
    raise UsageError(f"{where} is not a sound pickle: it has no end")


def _pairs(stack: list[Any], marks: list[int]) -> dict[Any, Any]:
    """Everything above the last mark, removed from the stack, as keys and values."""
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return dict(zip(items[::2], items[1::2], strict=True))
