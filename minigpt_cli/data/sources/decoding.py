"""Bytes as text: UTF-8, UTF-16 and UTF-32 by their byte-order mark, and what `--encoding` names.

A UTF-8 text is given exactly as it is written: byte-order marks, NULs and every kind of line break are characters like others.
What cannot be decoded is refused with the place of the first wrong byte, and with the encoding that it seems to be in.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from minigpt_cli.data.sources.contract import Input, refuse_longer
from minigpt_cli.errors import UsageError

BLOCK = 1 << 18  # bytes read at once
_SAMPLE = 1 << 14  # bytes from which an encoding is guessed
_BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def marked_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 if the text begins with the mark of one, else UTF-8, whose mark stays in the text."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")


def decoded(file: BinaryIO, label: str, encoding: str = "") -> Iterator[str]:
    """The text of an open file in pieces, none empty. Raises UsageError naming the first byte that is wrong."""
    block = _read(file, label)
    encoding = encoding or marked_encoding(block)
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    read = 0
    while True:
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
            if encoding != "utf-8":
                text.encode("utf-8")  # some encodings can write half of a surrogate pair
        except UnicodeEncodeError:
            raise UsageError(f"{label} holds half of a surrogate pair in {encoding}: name another --encoding") from None
        except UnicodeError as error:
            raise _undecodable(error, read - pending, label, encoding) from error
        if text:
            yield text
        if not block:
            return
        read += len(block)
        block = _read(file, label)


def _read(file: BinaryIO, label: str) -> bytes:
    try:
        return file.read(BLOCK)
    except OSError as error:
        raise UsageError(f"cannot read {label}: {error.strerror or error}") from error


def _undecodable(error: UnicodeError, start: int, label: str, encoding: str) -> UsageError:
    name = "UTF-8" if encoding == "utf-8" else encoding
    if not isinstance(error, UnicodeDecodeError):
        return UsageError(f"{label} is not {name}: {error}")
    guess = _guess(error.object[max(0, error.start - _SAMPLE // 2) :][:_SAMPLE])
    advice = f"it seems to be {guess}; if so, read it with --encoding {guess}" if guess else "name its --encoding"
    return UsageError(f"{label} is not {name} at byte {start + error.start} ({error.reason}): {advice}")


def _guess(sample: bytes) -> str:
    """The encoding that a text is probably in; empty where nothing fits."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return "" if best is None or best.encoding in ("ascii", "utf_8") else best.encoding


def texts(source: Input, encoding: str) -> Iterator[str]:
    """The text of a file in pieces."""
    with source.open() as file:
        yield from decoded(file, source.label, encoding)


def without_mark(chunks: Iterable[str]) -> Iterator[str]:
    """The same without a byte-order mark, which would be part of the first field of a table."""
    start = True
    for chunk in chunks:
        yield chunk.removeprefix("\ufeff") if start else chunk
        start = False


def lines(chunks: Iterable[str], label: str) -> Iterator[str]:
    """The lines of a text, each with its line break (\\n). Raises UsageError for one that is too long."""
    number, pending, size = 1, [""], 0
    for chunk in chunks:
        *complete, rest = chunk.split("\n")
        for part in complete:
            yield "".join([*pending, part, "\n"])
            number, pending, size = number + 1, [], 0
        pending.append(rest)
        size += len(rest)
        refuse_longer(size, f"{label} line {number}")
    if last := "".join(pending):
        yield last
