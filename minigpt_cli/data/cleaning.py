"""Cleaning that is asked for: --lowercase, --normalize nfc and --ascii-only, in this order, in pieces and in bounded memory.

Lowercase and NFC look beyond one character: a sigma at the end of a word becomes 'ς', and an accent joins the letter before it. The end
of a piece therefore waits until what follows is known, so that the result does not depend on where a text is cut into pieces. What a
character is (cased, ignored in words) is asked of str.lower itself, so both always agree.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from typing import NamedTuple

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.contract import Document, Piece, Source
from minigpt_cli.errors import UsageError
from minigpt_cli.tokenization.char import code_points

_WAITING = 1 << 20  # characters that may wait for the next one: no text has so many accents in a row
_SIGMA = "Σ"


class Change(NamedTuple):
    """A part of a text before and after one kind of cleaning."""

    before: str
    after: str


def lowercased(pieces: Iterable[str]) -> Iterator[Change]:
    """The pieces in lowercase: together they are str.lower of the whole."""
    waiting, context = "", ""  # context: a letter if the last character that counts is cased, which makes a sigma after it final
    for piece in pieces:
        text = _joined(waiting, piece)
        at = text.rfind(_SIGMA)
        end = at if at >= 0 and _is_open(text[at:]) else len(text)
        ready, waiting = text[:end], text[end:]
        followed = (context + ready + "a" * bool(waiting)).lower()  # what waits begins with a sigma, which is cased as a letter is
        yield Change(ready, followed[len(context) : len(followed) - bool(waiting)])
        context = _context(ready, context)
    yield Change(waiting, (context + waiting).lower()[len(context) :])


def _is_open(sigma_and_rest: str) -> bool:
    """Whether it depends on the next characters what the sigma becomes."""
    return ("a" + sigma_and_rest + "a").lower()[1] != ("a" + sigma_and_rest).lower()[1]


def _context(text: str, before: str) -> str:
    for character in reversed(text):
        if not _is_like(character, "a" + character + _SIGMA):
            return ""  # neither cased nor ignored
        if _is_like(character, character + _SIGMA):
            return "a"
    return before


@lru_cache(1 << 12)
def _is_like(character: str, word: str) -> bool:
    """Whether the sigma at the end of `word` is final, by what stands before it."""
    return word.lower().endswith("ς")


def composed(pieces: Iterable[str]) -> Iterator[Change]:
    """The pieces in NFC: together they are the normal form of the whole."""
    waiting = ""
    for piece in pieces:
        text = _joined(waiting, piece)
        end = next((i for i in range(len(text) - 1, -1, -1) if _begins(text[i])), 0)
        ready, waiting = text[:end], text[end:]
        yield Change(ready, unicodedata.normalize("NFC", ready))
    yield Change(waiting, unicodedata.normalize("NFC", waiting))


@lru_cache(1 << 12)
def _begins(character: str) -> bool:
    """Whether nothing before this character changes with it."""
    first = unicodedata.normalize("NFD", character)[0]
    return unicodedata.combining(first) == 0 and first not in _joining()


@cache
def _joining() -> frozenset[str]:
    """The characters that may become one with the character before them: those that stand second in a canonical decomposition."""
    hangul = [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]  # vowels and final consonants, which Unicode composes by a rule
    written = (unicodedata.decomposition(chr(point)) for point in range(0xC0, 0x30000))
    return frozenset(map(chr, hangul)) | {chr(int(part, 16)) for d in written if d and d[0] != "<" for part in d.split()[1:]}


def ascii_alone(pieces: Iterable[str]) -> Iterator[Change]:
    """The pieces without characters outside ASCII."""
    for piece in pieces:
        yield Change(piece, piece if piece.isascii() else piece.encode("ascii", "ignore").decode("ascii"))


def _joined(waiting: str, piece: str) -> str:
    if len(waiting) > _WAITING:
        raise UsageError(f"the text has more than {_WAITING:,} accents or points in a row after {waiting[0]!r}: leave them out")
    return waiting + piece


class Cleaning:
    """What the settings of a run ask for, and how much the last reading of a source was changed by it."""

    def __init__(self, config: DataConfig) -> None:
        self._steps: list[tuple[str, Callable[[Iterable[str]], Iterator[Change]]]] = []
        self._steps += [("--lowercase", lowercased)] if config.lowercase else []
        self._steps += [("--normalize nfc", composed)] if config.normalize == "nfc" else []
        self._steps += [("--ascii-only", ascii_alone)] if config.ascii_only else []
        self._changed: dict[str, tuple[int, int]] = {}  # of each step: characters that changed, characters that it took away

    def documents(self, source: Source) -> Iterator[Document]:
        """The documents of `source`, cleaned. Raises UsageError where a message then holds a mark of the template."""
        self._changed = {flag: (0, 0) for flag, _ in self._steps}
        return self._cleaned_documents(source) if self._steps else source.documents()

    def _cleaned_documents(self, source: Source) -> Iterator[Document]:
        in_messages = source.split_by == "conversation"
        for document in source.documents():
            if in_messages:
                yield document._replace(pieces=self._messages(document, source.marks))
            else:
                yield document._replace(pieces=map(Piece, self._cleaned(piece.text for piece in document.pieces)))

    def _messages(self, document: Document, marks: tuple[str, ...]) -> Iterator[Piece]:
        for piece in document.pieces:
            text = piece.text if piece.text in marks else "".join(self._cleaned([piece.text]))
            if piece.text not in marks and (mark := next((mark for mark in marks if mark in text), None)):
                raise UsageError(f"{document.name}: a cleaned message holds {mark}, which is reserved for the template")
            yield Piece(text, piece.learned)

    def _cleaned(self, pieces: Iterable[str]) -> Iterator[str]:
        for flag, step in self._steps:
            pieces = self._counted(flag, step(pieces))
        return iter(pieces)

    def _counted(self, flag: str, changes: Iterator[Change]) -> Iterator[str]:
        for before, after in changes:
            if before != after:
                changed, less = self._changed.get(flag, (0, 0))
                self._changed[flag] = changed + _n_different(before, after), less + len(before) - len(after)
            if after:
                yield after

    def text(self, text: str) -> str:
        """A text of its own, cleaned."""
        return "".join(self._cleaned([text]))

    @property
    def notices(self) -> list[str]:
        """What was changed."""
        what = {"--lowercase": "made lowercase", "--normalize nfc": "composed or replaced", "--ascii-only": "outside ASCII left out"}
        return [
            f"{flag}: {changed:,} characters {what[flag]}" + f", the text is {less:,} shorter" * (less > 0 and flag != "--ascii-only")
            for flag, (changed, less) in self._changed.items()
            if changed
        ]


def _n_different(before: str, after: str) -> int:
    """How many characters a change took away or made others."""
    if len(before) == len(after):
        return int((code_points(before) != code_points(after)).sum())
    return abs(len(before) - len(after))


def cleaned_prompt(config: DataConfig, text: str) -> str:
    """A prompt as a run with these settings knows its text: in lowercase and in NFC. What is outside ASCII stays, and is an error: a part
    of a prompt is not left out silently."""
    return Cleaning(config.model_copy(update={"ascii_only": False})).text(text)
