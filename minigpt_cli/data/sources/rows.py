"""Rows of files of rows (JSONL, JSON, CSV, parquet) as texts."""

from __future__ import annotations

from typing import Any

from minigpt_cli.data.sources.contract import refuse_longer
from minigpt_cli.errors import UsageError
from minigpt_cli.storage.atomic_io import one_line


def text_of(row: Any, field: str, where: str) -> str:
    """The text of a row: itself, or what `field` of it holds; a list of strings is joined by line breaks.

    An object without the field, but with exactly one list of strings, is that list: poems are often kept so. Raises UsageError.
    """
    value = _value(row, field, where) if isinstance(row, dict) else row
    if value is None:
        return ""
    if _are_lines(value):
        value = "\n".join(value)
    if not isinstance(value, str):
        what = f"the field {field!r} of {where}" if isinstance(row, dict) else where
        raise UsageError(f"{what} is not a text or a list of texts: choose a field with --text-field")
    refuse_longer(len(value), where)
    return value


def _value(row: dict[str, Any], field: str, where: str) -> Any:
    if field in row:
        return row[field]
    lists = [value for value in row.values() if value and _are_lines(value)]
    if len(lists) == 1:
        return lists[0]
    raise UsageError(f"{where} has no field {field!r}: {fields_there(row)}")


def fields_there(names: Any) -> str:
    """What can be chosen instead, for an error message."""
    listed = ", ".join(one_line(str(name), 40) for name in list(names)[:10])
    return f"choose one of {listed} with --text-field" if listed else "it has no field at all"


def _are_lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)
