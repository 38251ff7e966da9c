"""Cut a stream of text into segments that a tokenizer encodes one at a time, without changing the tokens.

A subword tokenizer is slow on a huge string and needs much memory, and a text of 1 GB must not be in memory at once. Text is cut
where no token of a byte-level or SentencePiece vocabulary crosses: after a letter and before a space or a mark that is not
part of a word. `LIMIT` characters without such a place are cut at their end. The cuts depend on the text alone, not on
how it was read, so the same text always gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LIMIT = 1 << 16  # characters in a piece

# Not part of a word in any Unicode version. The apostrophe is not here (contractions), nor line breaks: some pre-tokenizers
# (cl100k and those made from it) join line breaks to the punctuation before them.
_BREAKS = frozenset(' \t,.;:!?()[]{}"/-–—…、。，！？：；「」（）،؛؟।')


def segments(pieces: Iterable[str], limit: int = 0) -> Iterator[str]:
    """The concatenated `pieces`, cut into segments of at most `limit` (or LIMIT) characters that depend on the text alone."""
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
    """The last place i in start < i <= end where text may be cut, or `end` if there is none; text[end] must exist."""
    i = end + 1
    while (i := text.rfind(" ", start + 1, i)) > 0:  # the usual case, found within a word or two
        if text[i - 1].isalpha():
            return i
    for i in range(end, start, -1):
        if text[i] in _BREAKS and text[i - 1].isalpha():
            return i
    return end
