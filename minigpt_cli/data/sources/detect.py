"""Which kind a file is, by its content and its suffix together: a PDF called .txt is a PDF, and a text called .dat is text."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from minigpt_cli import registry
from minigpt_cli.data.sources.compressed import SUFFIXES, decompressed
from minigpt_cli.data.sources.contract import Input, Kind, NotText
from minigpt_cli.data.sources.decoding import encoding_of, extends_ascii, marked_encoding
from minigpt_cli.errors import UsageError

_HEAD = 1 << 16  # bytes of a file that are looked at
_SMALLEST = 64  # bytes from which on a judgement can be made
_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"RIFF": "a WebP image, or a sound or video file",
    b"ID3": "an MP3 file",
    b"\xff\xfb": "an MP3 file",
    b"OggS": "an Ogg file",
    b"fLaC": "a FLAC file",
    b"\0\0\0": "a video file or other binary data",
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "an empty zip archive",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\xd0\xcf\x11\xe0": "an old or encrypted Office document",
    b"SQLite format 3": "an SQLite database",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\xca\xfe\xba\xbe": "a program",
    b"\xcf\xfa\xed\xfe": "a program",
    b"\0asm": "a program",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"ARROW1": "an Arrow file",
    b"PAR1": "a parquet file",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"wOF": "a font",
}
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b")) + b"\x7f"


@cache
def kinds() -> dict[str, Kind]:
    """Every kind by its name in the registry."""
    return {name: registry.load("kind of file", name) for name in registry.KINDS}


class Found(NamedTuple):
    """How a file is read."""

    kind: Kind
    input: Input  # what is in it where it is compressed
    encoding: str = ""  # of a text; empty for UTF-8


def kind_of(source: Input, encoding: str = "") -> Found:
    """How a file is read, a text with this `--encoding` where it needs one. Raises NotText for what is not text."""
    with source.open() as file:
        try:
            head = file.read(_HEAD)
        except OSError as error:
            raise UsageError(f"cannot read {source.label}: {error.strerror or error}") from error
    if (inner := decompressed(source, head)) is not None:
        return kind_of(inner, encoding)
    known = kinds()
    suffix = source.path.suffix.lower()
    for kind in known.values():
        if kind.is_content is not None and kind.is_content(head, source):
            return Found(kind, source)
    named = next((kind for kind in known.values() if suffix in kind.suffixes), known["text"])
    if named.is_content is not None or suffix in SUFFIXES:
        what = named.what if named.is_content else f"a {suffix} file"
        if head:
            raise NotText(source.label, f"not {what}, or a damaged one", "get it again, or give it the suffix .txt if it is text")
    elif what := not_text(head, encoding):
        raise NotText(source.label, what)
    if named.is_content is not None:
        return Found(known["text"], source)  # an empty file
    found = encoding_of(source, head, encoding or (named.declared(head) if named.declared else ""))
    return Found(named if head else known["text"], source, "" if found == "utf-8" else found)


def not_text(head: bytes, encoding: str = "") -> str:
    """What a file that begins with `head` looks like, if it is not text; else empty."""
    if (encoding and not extends_ascii(encoding)) or marked_encoding(head) != "utf-8":
        return ""
    if len(head) > 262 and head[257:262] == b"ustar":
        return "a tar archive"
    controls = len(head) - len(head.translate(None, _CONTROLS))
    in_utf8 = _in_utf8(head)
    if len(head) < _SMALLEST:
        return ""
    binary = controls > 50 and controls > 0.1 * len(head) if in_utf8 else controls > 0.01 * len(head)  # a text may hold some NULs
    if in_utf8 and not binary and not head.startswith(b"PK"):
        return ""
    for magic, what in _MAGIC.items():
        if head.startswith(magic) and (binary or (not in_utf8 and not magic.isascii()) or magic.startswith(b"PK")):
            return what
    return "binary data, not text" if binary else ""


def _in_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and error.reason == "unexpected end of data"
    return True
