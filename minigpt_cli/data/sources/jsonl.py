"""JSONL: a JSON value a line. A row with a text is a document; rows of messages are conversations, which are never mixed with texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minigpt_cli.config import DataConfig
from minigpt_cli.data.chat import in_pieces
from minigpt_cli.data.sources.chat import is_conversation, messages_of
from minigpt_cli.data.sources.contract import DOCUMENT_LIMIT, Document, Input, Kind, Piece
from minigpt_cli.data.sources.decoding import lines, texts
from minigpt_cli.data.sources.rows import text_of
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.storage.atomic_io import parse_json

LINE_LIMIT = DOCUMENT_LIMIT  # bytes


def rows(source: Input, options: DataConfig) -> Iterator[tuple[int, Any]]:
    """The number and value of each line that is not blank. Raises UsageError that names a line that is not JSON."""
    for number, line in enumerate(_lines(source, options), 1):
        if line.strip():
            try:
                yield number, parse_json(line, f"{source.label} line {number}")
            except RunDamaged as error:
                raise UsageError(str(error)) from error


def _lines(source: Input, options: DataConfig) -> Iterator[bytes]:
    """The lines in UTF-8."""
    if options.encoding:
        yield from (line.encode("utf-8") for line in lines(texts(source, options.encoding), source.label))
        return
    with source.open() as file:
        number = 0
        while line := file.readline(LINE_LIMIT + 1):
            number += 1
            if len(line) > LINE_LIMIT:
                raise UsageError(f"{source.label} line {number} has more than {LINE_LIMIT:,} bytes")
            yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def holds_conversations(source: Input, options: DataConfig) -> bool:
    """Whether the first row is a conversation."""
    first = next(rows(source, options), None)
    return first is not None and is_conversation(first[1], options.text_field)


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    first: tuple[int, bool] | None = None  # the first row's number, and whether it is a conversation
    field = options.text_field
    for number, row in rows(source, options):
        where, chat = f"{source.label} line {number}", is_conversation(row, field)
        first = first or (number, chat)
        if chat != first[1] and (chat or (isinstance(row, dict) and field in row)):
            are = "a conversation and line {} a text" if chat else "a text and line {} a conversation"
            raise UsageError(f"{where} is {are.format(first[0])}: keep conversations and texts in files of their own")
        pieces = in_pieces(messages_of(row, where)) if first[1] else [Piece(text_of(row, field, where))]
        yield Document(f"{source.label}:{number}", pieces)


JSONL = Kind("JSONL", _read, (".jsonl", ".ndjson"))
