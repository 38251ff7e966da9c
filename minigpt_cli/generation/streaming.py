"""From token ids to text that is certain: complete characters only, and nothing that may become a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StopStrings:
    """Passes text on until one of several strings occurs in it, also across pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is certain now, the stop string that ended it). The stop string is not part of the text."""
        if not self.stops:
            return text, None
        self._held += text
        found = [(at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            first, stop = min(found, key=lambda pair: pair[0])
            out, self._held = self._held[:first], ""
            return out, stop
        hold = max(_overlap(self._held, stop) for stop in self.stops)
        cut = len(self._held) - hold
        out, self._held = self._held[:cut], self._held[cut:]
        return out, None

    def flush(self) -> str:
        """The text that was held back, at the end."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TextStream:
    """The growing text of one sequence of tokens. A character in several byte-level tokens is held back until it is complete."""

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(stops)
        self.stopped: str | None = None  # the stop string that is complete

    def push(self, token: int) -> str:
        """Text that became certain with `token`; sets `stopped` when a stop string is complete."""
        text, self.stopped = self._stops.push(self._decoder.decode(self._token_bytes[token]))
        return text

    def finish(self) -> str:
        """The text that was held back; an incomplete character becomes U+FFFD."""
        if self.stopped:
            return ""
        text, self.stopped = self._stops.push(self._decoder.decode(b"", True))
        return text if self.stopped else text + self._stops.flush()


def pieces_of(token_bytes: Sequence[bytes]) -> list[str]:
    """Tokens as text; one that is not complete characters as OpenAI writes it, `bytes:\\xe2\\x82`."""
    return [_piece(token) for token in token_bytes]


def _piece(token: bytes) -> str:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
