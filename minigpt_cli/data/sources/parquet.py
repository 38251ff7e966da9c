"""Parquet: each row is a document. Rows are read a few at a time, so that memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Input, Kind, Piece
from minigpt_cli.data.sources.rows import fields_there, text_of
from minigpt_cli.errors import MissingExtra, UsageError

_ROWS = 256  # read at once


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtra("reading parquet files", "documents") from None
    with source.open_seekable() as file:
        try:
            table: Any = ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            columns = table.schema_arrow.names
            field = options.text_field
            if field not in columns:
                raise UsageError(f"{source.label} has no column {field!r}: {fields_there(columns)}")
            number = 0
            for batch in table.iter_batches(_ROWS, columns=[field], use_threads=False):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield Document(f"{source.label}:{number}", [Piece(text_of({field: value}, field, f"{source.label} row {number}"))])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UsageError(f"{source.label} is damaged or incomplete, not a readable parquet file: get it again") from error


PARQUET = Kind("a parquet file", _read, (".parquet",), lambda head, source: head.startswith(b"PAR1") and b"\0" in head)
