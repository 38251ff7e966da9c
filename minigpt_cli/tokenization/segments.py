"""Cut a stream of text into pieces that a tokenizer can take one at a time, without changing the tokens.

A subword tokenizer slows down and swells on huge strings, and a 1 GB text must not be held at once. Pieces are cut where
byte-level and SentencePiece vocabularies never let a token reach across: after a letter and before a space or a mark that
belongs to no word. A stretch of `LIMIT` characters without such a place is cut at its end. Where the cuts fall depends on
the text alone, never on how it was read, so the same text always gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LIMIT = 1 << 16  # characters in a piece

# Never part of a word in any Unicode version. No apostrophe (contractions), and no line break: some pre-tokenizers
# (cl100k and its heirs) let punctuation take the line breaks after it.
_BREAKS = frozenset(' \t,.;:!?()[]{}"/-–—…、。，！？：；「」（）،؛؟।')


def segments(pieces: Iterable[str], limit: int = 0) -> Iterator[str]:
    """The concatenated `pieces`, cut anew into segments of at most `limit` (or LIMIT) characters that depend on the text alone."""
    limit = limit or LIMIT
    buffer = ""
    for piece in pieces:
        buffer += piece
        start = 0
        while len(buffer) - start > limit:
            end = _last_break(buffer, start, start + limit)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def _last_break(text: str, start: int, end: int) -> int:
    """The last place i in start < i <= end where text may be cut, or `end` where there is none; text[end] must exist."""
    i = end + 1
    while (i := text.rfind(" ", start + 1, i)) > 0:  # the usual case, found within a word or two
        if text[i - 1].isalpha():
            return i
    for i in range(end, start, -1):
        if text[i] in _BREAKS and text[i - 1].isalpha():
            return i
    return end
