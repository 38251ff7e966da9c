"""Word documents (.docx): the paragraphs of the text, a line each, are one document; footnotes, headers and comments are left out."""

from __future__ import annotations

import io
from collections.abc import Iterator

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Input, Kind, Piece
from minigpt_cli.data.sources.markup import lxml_etree
from minigpt_cli.data.sources.zipped import has_member, opened
from minigpt_cli.errors import UsageError

_BODY = "word/document.xml"
_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    with opened(source) as archive:
        body = archive.read(_BODY)
    yield Document(source.label, [Piece(_text(body, source.label))])


def _text(body: bytes, label: str) -> str:
    etree = lxml_etree()
    parts: list[str] = []
    try:
        for event, element in etree.iterparse(
            io.BytesIO(body), events=("start", "end"), resolve_entities=False, no_network=True, huge_tree=True
        ):
            name = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
            if event == "start":
                parts.append(_BREAKS.get(name, "") if element.getparent() is not None and element.getparent().tag.endswith("}r") else "")
            elif name == "t":
                parts.append(element.text or "")
            elif name == "p":
                parts.append("\n")
                element.clear()
    except etree.XMLSyntaxError as error:
        raise UsageError(f"{label} is damaged: {_BODY} in it is not XML; get it again") from error
    return "".join(parts).strip("\n")


DOCX = Kind("a Word document", _read, (".docx",), lambda head, source: head.startswith(b"PK\x03\x04") and has_member(source, _BODY))
