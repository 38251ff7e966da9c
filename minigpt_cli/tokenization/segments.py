"""Cut a stream of text into segments that a tokenizer encodes one at a time, without changing the tokens.

A subword tokenizer is slow on a huge string and needs much memory, and a text of 1 GB must not be in memory at once. Text is cut
where no token of a byte-level or SentencePiece vocabulary crosses: after a letter and before a space or a mark that is not
part of a word. `LIMIT` characters without such a place are cut at their end. Added tokens stay whole. The cuts depend on the text alone,
not on how it was read, so the same text always gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain, repeat

LIMIT = 1 << 16  # characters in a piece

# Not part of a word in any Unicode version. The apostrophe is not here (contractions), nor line breaks: some pre-tokenizers
# (cl100k and those made from it) join line breaks to the punctuation before them.
_BREAKS = frozenset(' \t,.;:!?()[]{}"/-–—…、。，！？：；「」（）،؛؟।')


def segments(pieces: Iterable[str], limit: int = 0, added: Collection[str] = ()) -> Iterator[str]:
    """The concatenated `pieces`, cut into segments of at most `limit` (or LIMIT) characters that depend on the text alone, and never inside
    one of the `added` tokens."""
    limit = limit or LIMIT
    ahead = max(map(len, added), default=1) - 1  # characters after a cut that show whether it is in a token
    buffer, start = "", 0
    for piece, seen in chain(zip(pieces, repeat(ahead), strict=False), [("", 0)]):
        buffer, start = buffer[start:] + piece, 0
        while len(buffer) - start > limit + seen:
            end = _outside(added, buffer, start, _last_break(buffer, start, start + limit))
            yield buffer[start:end]
            start = end
    if buffer[start:]:
        yield buffer[start:]


def _outside(added: Collection[str], text: str, start: int, end: int) -> int:
    """`end`, or where the added token begins that it would cut; where it ends, if that is all that there is."""
    for token in added:
        begin = text.find(token, max(start, end - len(token) + 1), end + len(token) - 1)
        if begin >= 0:
            end = begin if begin > start else start + len(token)
    return end


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
