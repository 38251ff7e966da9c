"""EPUB: a book is one document, its pages in the order of the spine."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Input, Kind, NotText, Piece
from minigpt_cli.data.sources.markup import from_xhtml, lxml_etree
from minigpt_cli.data.sources.zipped import Archive, has_member, opened
from minigpt_cli.errors import UsageError

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    with opened(source) as archive:
        pages = [text for name in _spine(archive) if (text := from_xhtml(archive.read(name), source.label))]
    yield Document(source.label, [Piece("\n\n".join(pages))])


def _spine(archive: Archive) -> list[str]:
    """The members that are the book's pages, in order. Raises UsageError for a book without them, NotText for a protected one."""
    roots = _all(_parsed(archive, _CONTAINER), "rootfile")
    package = roots[0].get("full-path", "") if roots else ""
    tree = _parsed(archive, _inside(package, archive.label))
    items = {item.get("id"): item for item in _all(tree, "item")}
    folder = posixpath.dirname(package)
    pages = []
    for reference in _all(tree, "itemref"):
        item = items.get(reference.get("idref"))
        if item is not None and item.get("media-type") in _PAGES:
            href = unquote(item.get("href", "").partition("#")[0])
            pages.append(_inside(posixpath.join(folder, href), archive.label))
    if not pages:
        raise UsageError(f"{archive.label} is damaged: it has no pages in its spine; get it again")
    if _ENCRYPTION in archive.names():
        locked = {unquote(item.get("URI", "")) for item in _all(_parsed(archive, _ENCRYPTION), "CipherReference")}
        if locked.intersection(pages):
            raise NotText(archive.label, "a copy-protected book", "give one without protection")
    return pages


def _inside(path: str, label: str) -> str:
    """A path in the archive, made plain. Raises UsageError for one that leads out of it."""
    plain = posixpath.normpath(path)
    if not path or plain.startswith(("..", "/")):
        raise UsageError(f"{label} is damaged: the path {path!r} in it leads outside of the book")
    return plain


def _parsed(archive: Archive, name: str) -> Any:
    etree = lxml_etree()
    try:
        return etree.fromstring(archive.read(name), etree.XMLParser(resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError as error:
        raise UsageError(f"{archive.label} is damaged: {name} in it is not XML; get it again") from error


def _all(tree: Any, name: str) -> list[Any]:
    return list(tree.iter("{*}" + name))


EPUB = Kind("an EPUB", _read, (".epub",), lambda head, source: head.startswith(b"PK\x03\x04") and has_member(source, _CONTAINER))
