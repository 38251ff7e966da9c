"""Parquet: each row is a document. Rows are read a few at a time, so that memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
from operator import methodcaller
from typing import Any

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Input, Kind, Piece, refuse_longer
from minigpt_cli.data.sources.rows import fields_there, text_of
from minigpt_cli.errors import MissingExtra, UsageError

_ROWS, _AT_ONCE = 256, 1 << 26  # rows, and about bytes, that are read at once


def _mean_bytes(metadata: Any, field: str) -> int:
    """The mean length of a column's values, in the row group where it is largest."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    sizes = [
        column.total_uncompressed_size // group.num_rows
        for group in groups
        if group.num_rows
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema.split(".")[0] == field
    ]
    return max(sizes, default=0)


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
            number, mean = 0, _mean_bytes(table.metadata, field)
            refuse_longer(mean, source.label)
            for batch in table.iter_batches(max(1, min(_ROWS, _AT_ONCE // max(1, mean))), columns=[field], use_threads=False):
                for value in map(methodcaller("as_py"), batch.column(0)):
                    number += 1
                    yield Document(f"{source.label}:{number}", [Piece(text_of({field: value}, field, f"{source.label} row {number}"))])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UsageError(f"{source.label} is damaged or incomplete, not a readable parquet file: get it again") from error


PARQUET = Kind("a parquet file", _read, (".parquet",), lambda head, source: head.startswith(b"PAR1") and b"\0" in head)
