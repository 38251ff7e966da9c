"""JSON: an array of texts, of lists of lines, or of objects that hold one; each is a document. A single object is one document."""

from __future__ import annotations

from collections.abc import Iterator

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Input, Kind, NotText, Piece
from minigpt_cli.data.sources.decoding import texts, without_mark
from minigpt_cli.data.sources.rows import text_of
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.storage.atomic_io import parse_json

LIMIT = 1 << 28  # characters; a file is read whole


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    parts, size = [], 0
    for chunk in without_mark(texts(source, options.encoding)):
        size += len(chunk)
        if size > LIMIT:
            raise UsageError(f"{source.label} has more than {LIMIT >> 20} Mi characters, too many for one JSON value: write it as .jsonl")
        parts.append(chunk)
    try:
        value = parse_json("".join(parts).encode("utf-8"), source.label)
    except RunDamaged as error:
        raise UsageError(str(error)) from error
    if isinstance(value, list):
        for number, row in enumerate(value, 1):
            yield Document(f"{source.label}:{number}", [Piece(text_of(row, options.text_field, f"{source.label} element {number}"))])
        return
    try:
        text = text_of(value, options.text_field, source.label)
    except UsageError as error:
        advice = str(error).removeprefix(f"{source.label} ")
        raise NotText(source.label, "JSON without a text", advice) from error
    yield Document(source.label, [Piece(text)])


JSON = Kind("JSON", _read, (".json",))
