"""CSV and TSV: the first row names the columns, and each further row is a document."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import DOCUMENT_LIMIT, Document, Input, Kind, Piece
from minigpt_cli.data.sources.decoding import lines, texts, without_mark
from minigpt_cli.data.sources.rows import fields_there
from minigpt_cli.errors import UsageError


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    number = 1
    try:
        for number, row in _rows(source, options):
            yield Document(f"{source.label}:{number}", [Piece(row)])
    except csv.Error as error:
        raise UsageError(f"{source.label} is not valid CSV after line {number}: {error}") from error


def _rows(source: Input, options: DataConfig) -> Iterator[tuple[int, str]]:
    """The number of the line in which a row ends, and its text. Raises csv.Error."""
    found = lines(without_mark(texts(source, options.encoding)), source.label)
    header = next(found, "")
    if not header.strip():
        return
    delimiter = "\t" if source.path.suffix.lower() == ".tsv" else _delimiter(header, options.text_field)
    columns = next(csv.reader([header], delimiter=delimiter), [])
    if options.text_field not in columns:
        raise UsageError(
            f"{source.label} has no column {options.text_field!r} in its first row, which must name the columns: {fields_there(columns)}"
        )
    at = columns.index(options.text_field)
    csv.field_size_limit(DOCUMENT_LIMIT)
    reader = csv.reader(found, delimiter=delimiter, strict=True)
    for row in reader:
        number = reader.line_num + 1  # the header is line 1
        if row and len(row) <= at:
            raise UsageError(f"{source.label} line {number} has {len(row)} columns, not {len(columns)}")
        if row:
            yield number, row[at]


def _delimiter(header: str, field: str) -> str:
    """The character at which this header is cut into columns of which one is `field`; else the one that cuts it most often."""
    rows = {delimiter: next(csv.reader([header], delimiter=delimiter), []) for delimiter in ",;\t"}
    return max(rows, key=lambda delimiter: (field in rows[delimiter], len(rows[delimiter])))


DELIMITED = Kind("CSV", _read, (".csv", ".tsv"))
