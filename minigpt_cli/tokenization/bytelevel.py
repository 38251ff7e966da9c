"""GPT-2's byte alphabet: each of the 256 bytes as one printable character, so that JSON can hold tokens that are not UTF-8.

Source: the `bytes_to_unicode` table of GPT-2 (Radford et al. 2019). A byte of printable Latin-1 is its own character; the other
68 bytes get the code points from U+0100 on, in order.
"""

from __future__ import annotations

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in set(_PRINTABLE)]

CHARACTER_OF_BYTE: dict[int, str] = {b: chr(b) for b in _PRINTABLE} | {b: chr(0x100 + i) for i, b in enumerate(_OTHERS)}
_BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def bytes_of(token: str) -> bytes | None:
    """The bytes that a byte-level token stands for; None if it holds a character outside the alphabet."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return None
