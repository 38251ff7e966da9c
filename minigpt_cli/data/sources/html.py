"""HTML: the visible text of a page is one document."""

from __future__ import annotations

import re
from collections.abc import Iterator

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Input, Kind, Piece, refuse_longer
from minigpt_cli.data.sources.decoding import texts
from minigpt_cli.data.sources.markup import from_html

_DECLARED = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_HEAD = 4096  # bytes in which a page declares its encoding


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    parts, size = [], 0
    for chunk in texts(source, options.encoding):
        parts.append(chunk)
        size += len(chunk)
        refuse_longer(size, source.label)
    yield Document(source.label, [Piece(from_html("".join(parts).encode("utf-8"), source.label))])


def _encoding(head: bytes) -> str:
    """What the page says, if Python knows it; as browsers do, Latin-1 is read as its superset."""
    if not (declared := _DECLARED.search(head[:_HEAD])):
        return ""
    name = declared[1].decode("ascii", "replace").lower()
    try:
        b" ".decode(name)
    except (LookupError, UnicodeError):
        return ""
    return "cp1252" if name in ("iso-8859-1", "latin-1", "latin1", "us-ascii", "ascii") else "" if name in ("utf8", "utf-8") else name


HTML = Kind("HTML", _read, (".html", ".htm", ".xhtml"), declared=_encoding)
