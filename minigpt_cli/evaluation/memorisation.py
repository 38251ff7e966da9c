"""How much of what a model writes is copied from its training text. No torch; linear in the length of the text.

For every character of a sample: the longest passage that ends there and occurs somewhere in the training text. A suffix automaton (Blumer
et al. 1985) is built from the samples, which are short, and reads the training text, which is long, once; so memory depends on the
samples alone. The same measurement on unseen text of the same kind shows how long copies are without memorisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Copies:
    """Verbatim copies from the training text in some texts."""

    longest: int  # characters
    mean: float  # over characters: the length of the longest copy that ends at each
    longest_text: str


class _Automaton:
    """All substrings of a few texts, as states; no substring spans two texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.next: list[dict[str | int, int]] = [{}]
        self.link, self.length = [-1], [0]
        self.ends: list[int] = []  # the state of the whole text so far, for each character in order
        last = 0
        for number, text in enumerate(texts):
            if number:
                last = self._extend(last, number)  # a separator that no text contains
            for character in text:
                last = self._extend(last, character)
                self.ends.append(last)

    def _extend(self, last: int, character: str | int) -> int:
        new = self._state({}, 0, self.length[last] + 1)
        at = last
        while at != -1 and character not in self.next[at]:
            self.next[at][character] = new
            at = self.link[at]
        if at == -1:
            return new
        target = self.next[at][character]
        if self.length[target] == self.length[at] + 1:
            self.link[new] = target
            return new
        clone = self._state(dict(self.next[target]), self.link[target], self.length[at] + 1)
        while at != -1 and self.next[at].get(character) == target:
            self.next[at][character] = clone
            at = self.link[at]
        self.link[target] = self.link[new] = clone
        return new

    def _state(self, following: dict[str | int, int], link: int, length: int) -> int:
        self.next.append(following)
        self.link.append(link)
        self.length.append(length)
        return len(self.next) - 1


def copied_lengths(texts: Sequence[str], training: Iterable[str]) -> npt.NDArray[np.int64]:
    """For every character of `texts`, in order, the length of the longest passage of its text that ends there and occurs in the training
    text, which is given in pieces, (n_chars,)."""
    automaton = _Automaton(texts)
    following, link, length = automaton.next, automaton.link, automaton.length
    found = [0] * len(length)  # longest passage of each state that the training text contains
    state = matched = 0
    for piece in training:
        for character in piece:
            while state and character not in following[state]:
                state = link[state]
                matched = length[state]
            state = following[state].get(character, 0)
            matched = matched + 1 if state else 0
            if matched > found[state]:
                found[state] = matched
    by_length = np.argsort(length, kind="stable")
    for at in by_length[:0:-1].tolist():  # the suffixes of a passage that occurs occur too
        if found[at]:
            found[link[at]] = length[link[at]]
    for at in by_length[1:].tolist():  # where a state does not occur, its longest suffix that does
        found[at] = found[at] or found[link[at]]
    return np.array([found[end] for end in automaton.ends], dtype=np.int64)


def copies(texts: Sequence[str], training: Iterable[str]) -> Copies:
    """The longest and the mean verbatim copy from `training` in `texts`."""
    lengths = copied_lengths(texts, training)
    if not len(lengths):
        return Copies(0, 0.0, "")
    at = int(lengths.argmax())
    joined = "".join(texts)
    return Copies(int(lengths[at]), float(lengths.mean()), joined[at + 1 - int(lengths[at]) : at + 1])
