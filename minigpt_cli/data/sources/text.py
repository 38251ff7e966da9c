"""Plain text, under any suffix: the whole file is one document, exactly as it is written."""

from __future__ import annotations

from collections.abc import Iterator

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Input, Kind
from minigpt_cli.data.sources.decoding import pieces


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    yield Document(source.label, pieces(source, options.encoding))


TEXT = Kind("a text", _read, (".txt", ".md"))
