"""From token ids to text that is certain: whole characters only, and nothing that may yet turn out to be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StopStrings:
    """Passes text through until one of several strings has come by, wherever the pieces are cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is certain now, whether a stop string ended it). The stop string itself is not part of the text."""
        if not self.stops:
            return text, False
        self._held += text
        found = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            out, self._held = self._held[: min(found)], ""
            return out, True
        hold = max(_overlap(self._held, stop) for stop in self.stops)
        cut = len(self._held) - hold
        out, self._held = self._held[:cut], self._held[cut:]
        return out, False

    def flush(self) -> str:
        """What was held, at the end."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TextStream:
    """Text of one sequence of tokens as it grows. A character split over byte-level tokens is held until it is whole."""

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(stops)
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that became certain with `token`; sets `stopped` when a stop string is complete."""
        text, self.stopped = self._stops.push(self._decoder.decode(self._token_bytes[token]))
        return text

    def finish(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        if self.stopped:
            return ""
        text, self.stopped = self._stops.push(self._decoder.decode(b"", True))
        return text if self.stopped else text + self._stops.flush()


def pieces_of(token_bytes: Sequence[bytes]) -> list[str]:
    """Tokens as text; a token that is no whole character as OpenAI writes it, `bytes:\\xe2\\x82`."""
    return [_piece(token) for token in token_bytes]


def _piece(token: bytes) -> str:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
