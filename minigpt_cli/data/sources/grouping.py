"""What a document is, where `--documents` says: the whole file, each line, or the text between lines that are exactly a mark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from minigpt_cli.data.sources.contract import Document, Piece, refuse_longer
from minigpt_cli.data.sources.decoding import lines


def regrouped(documents: Iterator[Document], how: str, label: str) -> Iterator[Document]:
    """The documents of one file as `how` says: auto, file, lines or a mark. Conversations stay as they are."""
    if how == "auto":
        return documents
    if how == "file":
        return _as_one(documents, label)
    return chain.from_iterable(_lines(document) if how == "lines" else _between(document, how) for document in documents)


def _as_one(documents: Iterator[Document], label: str) -> Iterator[Document]:
    def pieces() -> Iterator[Piece]:
        last = "\n"
        for document in documents:
            if last != "\n":
                yield Piece("\n")
            for piece in document.pieces:
                yield piece
                last = piece.text[-1:] or last

    yield Document(label, pieces())


def _text(document: Document) -> Iterator[str]:
    return (piece.text for piece in document.pieces)


def _lines(document: Document) -> Iterator[Document]:
    for number, line in enumerate(lines(_text(document), document.name), 1):
        yield Document(f"{document.name}:{number}", [Piece(line.removesuffix("\n").removesuffix("\r"))])


def _between(document: Document, mark: str) -> Iterator[Document]:
    start, found, size = 1, [], 0
    for number, line in enumerate(lines(_text(document), document.name), 1):
        if line.rstrip("\r\n") != mark:
            found.append(line)
            size += len(line)
            refuse_longer(size, document.name)
            continue
        yield _without_blank_ends(found, f"{document.name}:{start}")
        start, found, size = number + 1, [], 0
    if found:
        yield _without_blank_ends(found, f"{document.name}:{start}" if start > 1 else document.name)


def _without_blank_ends(found: Iterable[str], name: str) -> Document:
    return Document(name, [Piece("".join(found).strip("\r\n"))])
