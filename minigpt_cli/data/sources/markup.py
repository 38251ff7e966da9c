"""The visible text of HTML and XHTML: what a browser would show, without its layout."""

from __future__ import annotations

import html
import re
from typing import Any

from minigpt_cli.errors import MissingExtra, UsageError

_HIDDEN = frozenset(
    ["head", "script", "style", "template", "noscript", "svg", "math", "iframe", "object", "select", "textarea", "button", "datalist"]
)
_PARAGRAPHS = frozenset(
    ["p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "ul", "ol", "dl", "table", "section", "article", "header"]
) | frozenset(["footer", "main", "nav", "aside", "hr", "figure", "form", "fieldset", "address"])
_LINES = frozenset(
    ["div", "li", "tr", "dt", "dd", "br", "caption", "figcaption", "legend", "details", "summary", "option", "thead", "tbody", "body"]
)
_RESOURCE_LIMIT = 114  # the number that libxml2 gives to what it did not read to its end (XML_ERR_RESOURCE_LIMIT)
_SPACE = re.compile(r"[ \t\n\r\f]+")
_ENTITY = re.compile(rb"&([A-Za-z][A-Za-z0-9]*);")
_OF_XML = {b"amp", b"lt", b"gt", b"quot", b"apos"}


def from_html(data: bytes, label: str) -> str:
    """The text of a page in UTF-8. Raises UsageError for one that cannot be read to its end."""
    etree = lxml_etree()
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        root = etree.fromstring(data, parser)
        if any(entry.type == _RESOURCE_LIMIT for entry in parser.error_log):
            raise UsageError(f"{label} cannot be read as HTML: its elements are nested too deeply; save its text as .txt")
        return _visible(root, etree)
    except (etree.ParserError, etree.XMLSyntaxError):  # nothing but comments
        return ""


def from_xhtml(data: bytes, label: str) -> str:
    """The text of a page of a book: as XML, or as HTML where it is not well-formed."""
    etree = lxml_etree()
    data = _ENTITY.sub(_numbered, data)
    try:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
        return _visible(etree.fromstring(data, parser), etree)
    except etree.XMLSyntaxError:
        return from_html(data, label)


def lxml_etree() -> Any:
    """The XML library. Raises MissingExtra."""
    try:
        from lxml import etree
    except ImportError:
        raise MissingExtra("reading HTML, EPUB and Word documents", "documents") from None
    return etree


def _numbered(entity: re.Match[bytes]) -> bytes:
    """An entity of HTML, such as &nbsp;, as one that XML knows too."""
    character = "" if entity[1] in _OF_XML else html.unescape(entity[0].decode("ascii"))
    return entity[0] if len(character) != 1 else b"&#%d;" % ord(character)


class _Text:
    """Text as it grows: white space is drawn together, and breaks are kept until something follows them."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._breaks = 0  # line breaks before what comes next
        self._space = False  # a space before what comes next

    def add(self, text: str, *, kept: bool) -> None:
        """Add text; `kept` is preformatted."""
        shown = text if kept else _SPACE.sub(" ", text)
        if not kept:
            self._space |= shown.startswith(" ")
            ends = shown.endswith(" ")
            shown = shown.strip(" ")
        if not shown:
            return
        if self.parts and self._breaks:
            self.parts.append("\n" * self._breaks)
        elif self.parts and self._space:
            self.parts.append(" ")
        self.parts.append(shown)
        self._breaks, self._space = 0, not kept and ends

    def end(self, breaks: int) -> None:
        """End the line (1) or the paragraph (2)."""
        self._breaks, self._space = max(self._breaks, breaks), False


def _visible(root: Any, etree: Any) -> str:
    text = _Text()
    hidden = kept = 0  # how many elements around this place hide it, or keep its white space
    if root is None:
        return ""
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if not isinstance(element.tag, str):  # an entity that nothing defines
            if event == "end" and element.tail and not hidden:
                text.add(element.tail, kept=kept > 0)
            continue
        name = element.tag.rpartition("}")[2].lower()
        step = 1 if event == "start" else -1
        hides, breaks = name in _HIDDEN or element.get("hidden") is not None, 2 if name in _PARAGRAPHS else 1 if name in _LINES else 0
        if not hidden and breaks:
            text.end(breaks)
        hidden += step * hides
        kept += step * (name == "pre")
        words = element.text if event == "start" else element.tail
        if name in ("td", "th") and event == "end" and not hidden:
            text.add("\t", kept=True)
        if words and not hidden:
            text.add(words, kept=kept > 0)
    return "".join(text.parts)
