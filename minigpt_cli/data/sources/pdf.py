"""PDF: the text layer of the pages, in order, is one document. A scan without text, or an encrypted file, is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Input, Kind, NotText, Piece, refuse_longer
from minigpt_cli.errors import MiniGPTError, MissingExtra, UsageError


def _read(source: Input, options: DataConfig) -> Iterator[Document]:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise MissingExtra("reading PDFs", "documents") from None
    with source.open_seekable() as file:
        with _explained(source.label):
            reader = PdfReader(file)
            if reader.is_encrypted:
                raise NotText(source.label, "an encrypted PDF", "save it without a password")
            pages: list[Any] = list(reader.pages)
        texts = _texts(pages, source.label)
        if (first := next(texts, None)) is None:
            raise NotText(source.label, "a PDF without a text layer", "it holds images alone; recognise its text first, e.g. with ocrmypdf")
        yield Document(source.label, _joined(first, texts))


def _texts(pages: list[Any], label: str) -> Iterator[str]:
    """The text of each page that has one."""
    for page in pages:
        with _explained(label):
            text = page.extract_text().strip("\n")
            text = text.encode("utf-8", "replace").decode("utf-8")  # a broken font can map to half of a surrogate pair
        refuse_longer(len(text), label)
        if text.strip():
            yield text


def _joined(first: str, others: Iterator[str]) -> Iterator[Piece]:
    yield Piece(first)
    for text in others:
        yield Piece("\n" + text)


@contextmanager
def _explained(label: str) -> Iterator[None]:
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it repairs would be a line for every object
    try:
        yield
    except MiniGPTError:
        raise
    except Exception as error:  # a damaged file meets whatever the library did not expect there
        raise UsageError(f"{label} is damaged, not a readable PDF ({type(error).__name__}): get it again") from error
    finally:
        logger.setLevel(level)


PDF = Kind("a PDF", _read, (".pdf",), lambda head, source: head.startswith(b"%PDF-"))
