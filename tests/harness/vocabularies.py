"""SentencePiece vocabularies, written by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence

Piece = tuple[str, float, int]  # text, score, type


def field(number: int, value: int | bytes | float) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(number: int) -> bytes:
    """A number in groups of seven bits."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


KEEPS = field(3, field(1, b"identity") + field(4, 0))  # the text is left as it is
BPE = field(3, 2)


def sentencepiece_model(pieces: Sequence[Piece], trainer: bytes = BPE, rest: bytes = KEEPS) -> bytes:
    """A .model file of these pieces, of the fields of its trainer's settings, and what comes after them."""
    written = b"".join(field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces)
    return written + field(2, trainer) + rest
