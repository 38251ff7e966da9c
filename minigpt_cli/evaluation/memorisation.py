"""How much of what a model writes it has copied from its training text. No torch, linear in the text.

For every character of a sample: the longest stretch ending there that occurs somewhere in the training text. A suffix
automaton (Blumer et al. 1985) is built of the samples, which are short, and the training text, which is long, is read
through it once; so memory depends on the samples alone. Unseen text of the same kind, measured alike, says how long
copies are that nobody memorised.
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
    mean: float  # over characters: of the longest copy that ends at each
    longest_text: str


class _Automaton:
    """All substrings of a few texts, as states; texts are kept apart."""

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
    """For every character of `texts`, one after another, the length of the longest stretch ending there (in its own text) that
    the training text, given in pieces, contains, (n_chars,)."""
    automaton = _Automaton(texts)
    following, link, length = automaton.next, automaton.link, automaton.length
    found = [0] * len(length)  # longest stretch of each state that the training text contains
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
    for at in by_length[:0:-1].tolist():  # what is contained, contains its suffixes
        if found[at]:
            found[link[at]] = length[link[at]]
    for at in by_length[1:].tolist():  # and where a state is not contained, its longest suffix that is
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
