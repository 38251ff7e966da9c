"""Bytes as text: UTF-8, UTF-16 and UTF-32 by their byte-order mark, and what `--encoding` names.

A UTF-8 text is given exactly as it is written: byte-order marks, NULs and every kind of line break are characters like others.
What cannot be decoded is refused with the place of the first wrong byte, and with the encoding that it seems to be in. That is a guess,
so its words are shown, and nothing is read by it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from functools import cache
from typing import BinaryIO

from minigpt_cli.data.sources.contract import Input, Piece, refuse_longer
from minigpt_cli.errors import UsageError

BLOCK = 1 << 18  # bytes read at once
_SAMPLE = 1 << 14  # bytes from which an encoding is guessed
_AROUND = 12  # bytes before a wrong one that are shown
_NOT_ASCII = bytes(range(0x80, 0x100))
_MOSTLY = 0.7  # of ASCII, as in the languages that are written in cp1252, which is by far the most frequent
_BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LIKELY = [
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874", "cp866", "cp850", "cp437"),
    *("iso8859_2", "koi8_r", "koi8_u", "mac_roman", "shift_jis", "euc_jp", "iso2022_jp", "gb18030", "big5", "cp949", "utf_16", "utf_32"),
]


def marked_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 if the text begins with the mark of one, else UTF-8, whose mark stays in the text."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")


def encoding_of(source: Input, head: bytes, named: str) -> str:
    """The encoding of a text that begins with `head`. What `--encoding` has `named` is for what is in none of the others: files of a folder
    differ, and UTF-8 is hardly ever anything else."""
    if not named or extends_ascii(named):
        marked = marked_encoding(head)
        return marked if marked != "utf-8" or not named or _is_utf8(source) else named
    return named


@cache
def extends_ascii(encoding: str) -> bool:
    """Whether this is an encoding, other than UTF-8, that has all of ASCII and writes all else in other bytes: its texts can be told from
    UTF-8."""
    ascii_bytes = bytes(range(0x80)) + b"\x1b$B0!\x1b(B"  # which are Japanese in ISO-2022-JP
    try:
        return not codecs.lookup(encoding).name.startswith("utf") and ascii_bytes.decode(encoding) == ascii_bytes.decode("ascii")
    except UnicodeError:
        return False


def _is_utf8(source: Input) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    with source.open() as file:
        try:
            while block := _read(file, source.label):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _decoded(file: BinaryIO, label: str, encoding: str) -> Iterator[Piece]:
    """The text of an open file in pieces, none empty. Raises UsageError naming the first byte that is wrong."""
    block = _read(file, label)
    encoding = encoding or marked_encoding(block)
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    read = 0
    while True:
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(block, final=not block)
            if encoding != "utf-8":
                text.encode("utf-8")  # some encodings can write half of a surrogate pair
        except UnicodeEncodeError:
            raise UsageError(f"{label} holds half of a surrogate pair in {encoding}: name another --encoding") from None
        except UnicodeError as error:
            raise _undecodable(error, read - len(pending), label, encoding) from error
        if text:
            data = pending + block
            yield Piece(text, True, data[: len(data) - len(decoder.getstate()[0])] if encoding == "utf-8" else None)
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
    sample = _whole_lines(error.object[max(0, error.start - _SAMPLE // 2) :][:_SAMPLE])
    advice = "name its --encoding"
    if guess := _guess(sample):
        words = {name: _words(error.object, error.start, name) for name in (guess, "cp1252")}
        advice = f"it seems to be {guess} (“{words[guess]}”); if so, read it with --encoding {guess}"
        if words["cp1252"] != words[guess] and len(sample.translate(None, _NOT_ASCII)) > _MOSTLY * len(sample):
            advice += f"; or with --encoding cp1252, if “{words['cp1252']}” is right"
    return UsageError(f"{label} is not {name} at byte {start + error.start} ({error.reason}): {advice}")


def _whole_lines(sample: bytes) -> bytes:
    """The sample without the lines that it begins and ends in, which may begin and end inside a character; one line as it is."""
    return sample[sample.find(b"\n") + 1 : sample.rfind(b"\n") + 1] or sample


def _guess(sample: bytes) -> str:
    """The encoding that a text is probably in; empty where nothing fits."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=_LIKELY).best()
    return "" if best is None else best.encoding


def _words(data: bytes, at: int, encoding: str) -> str:
    """The characters around a byte, in one line."""
    start = next((i for i in range(max(0, at - _AROUND), at) if data[i:at].isascii()), at)
    return " ".join(data[start : at + 2 * _AROUND].decode(encoding, "replace")[: 2 * _AROUND].split())


def pieces(source: Input, encoding: str) -> Iterator[Piece]:
    """The text of a file in pieces."""
    with source.open() as file:
        yield from _decoded(file, source.label, encoding)


def texts(source: Input, encoding: str) -> Iterator[str]:
    """The same as strings."""
    return (piece.text for piece in pieces(source, encoding))


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
