"""Two or more models on the same characters: verdicts, and where they differ. No torch.

A comparison of single runs is about those weights on that kind of text. Only groups of seeds tell something about recipes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation.scores import Score
from minigpt_cli.evaluation.seeds import Group, Outlook, group_of, grouped_interval, grouped_test, outlook
from minigpt_cli.evaluation.statistics import Estimate, Floats, holm, largest_windows, paired_test

LEVEL = 0.05
RARE = 2000  # a character that makes up less than one in this many is rare
_PASSAGES = 2  # that are shown of each side where it is better

Verdict = Literal["a_better", "b_better", "indistinguishable"]
Question = Literal["weights", "recipes"]
KINDS = ("word-initial", "inside a word", "space", "newline", "punctuation", "digit", "rare")


@dataclass(frozen=True)
class Side:
    """One side of comparisons: a run, or the seeds of one recipe, each with its score."""

    name: str
    scores: tuple[Score, ...]

    @property
    def char_nats(self) -> Floats:
        """Mean over seeds of the nats of every character, (n_chars,)."""
        return np.asarray(np.mean(np.stack([score.char_nats for score in self.scores]), axis=0))

    @property
    def group(self) -> Group:
        """Mean and spread of the scores."""
        return group_of([score.nats_per_char for score in self.scores])

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % interval of the mean: over text, and with several seeds over seeds too."""
        return self.scores[0].ci95 if len(self.scores) == 1 else grouped_interval([score.char_nats for score in self.scores])


@dataclass(frozen=True)
class Pair:
    """The verdict on two sides; differences are a - b in nats per character, so negative means that a is better."""

    a: str
    b: str
    test: Estimate
    p_holm: float  # adjusted for the number of pairs
    verdict: Verdict
    question: Question  # what was tested: whether these weights differ, or whether these recipes do
    outlook: Outlook | None = None  # for groups of seeds


def check_same_text(sides: Sequence[Side]) -> None:
    """Raise UsageError unless every score is of the same characters."""
    if len({(score.text_sha256, score.parts is None) for side in sides for score in side.scores}) > 1:
        raise UsageError("the runs were scored on different texts: give one text for all with --data FILE")


def compare_pairs(sides: Sequence[Side], looks: int = 1, pairs: Sequence[tuple[Side, Side]] | None = None) -> list[Pair]:
    """A verdict for every pair of sides, or for these `pairs` of them, adjusted together, and for how often their growing numbers of
    seeds may be looked at."""
    check_same_text(sides)
    pairs = list(combinations(sides, 2)) if pairs is None else pairs
    tests = [_test(a, b) for a, b in pairs]
    adjusted = [min(1.0, looks * p) for p in holm([test.p_value for test, _ in tests])]
    return [
        Pair(a.name, b.name, test, p, verdict_of(test, p), _question(a, b), further)
        for (a, b), (test, further), p in zip(pairs, tests, adjusted, strict=True)
    ]


def _test(a: Side, b: Side) -> tuple[Estimate, Outlook | None]:
    if _question(a, b) == "weights":
        return paired_test(a.char_nats, b.char_nats), None
    found = grouped_test([score.char_nats for score in a.scores], [score.char_nats for score in b.scores])
    return found.difference, outlook(found, a.group, b.group)


def _question(a: Side, b: Side) -> Question:
    return "recipes" if min(len(a.scores), len(b.scores)) > 1 else "weights"


def verdict_of(test: Estimate, p_adjusted: float) -> Verdict:
    """Which side is better: one, if both the adjusted p-value and the interval exclude chance; else they are indistinguishable."""
    if p_adjusted >= LEVEL or test.low <= 0 <= test.high:
        return "indistinguishable"
    return "a_better" if test.mean < 0 else "b_better"


# ---- where they differ


@dataclass(frozen=True)
class Part:
    """A kind of characters and the loss of each side on it."""

    name: str
    share: float  # of all characters
    nats_per_char: tuple[float, ...]  # by side


@dataclass(frozen=True)
class Passage:
    """A passage of text on which two sides differ much."""

    start: int  # character
    text: str
    differences: Floats  # (len(text),) a - b
    delta: float  # mean of them


def character_kinds(text: str, answers: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int8]:
    """The kind of every character, as an index into KINDS, (n_chars,). A word ends where one of `answers` starts."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    known, coded, counts = np.unique(points, return_inverse=True, return_counts=True)
    kind_of = np.array([_kind(chr(point)) for point in known], dtype=np.int8)
    rare = counts * RARE < len(points)
    kinds = kind_of[coded]
    in_word = kinds == 1
    after_word = np.concatenate([[False], in_word[:-1]])
    if answers is not None:
        after_word[answers[answers < len(after_word)]] = False
    kinds[in_word & ~after_word] = 0
    kinds[rare[coded]] = KINDS.index("rare")
    return np.asarray(kinds, dtype=np.int8)


def _kind(character: str) -> int:
    category = unicodedata.category(character)
    if character in "\n\r\u2028\u2029":
        return KINDS.index("newline")
    if category[0] in "LM":
        return KINDS.index("inside a word")
    if category[0] == "N":
        return KINDS.index("digit")
    return KINDS.index("space" if category[0] == "Z" or character in "\t\v\f" else "punctuation")


def _firsts(side: Side) -> npt.NDArray[np.int64] | None:
    """The first character of each answer or document; None for a plain text."""
    parts = side.scores[0].parts
    return None if parts is None else parts.first


def by_kind(sides: Sequence[Side], text: str) -> list[Part]:
    """Each side's nats per character by kind of character; kinds that do not occur are left out."""
    kinds = character_kinds(text, _firsts(sides[0]))
    nats = [side.char_nats for side in sides]
    masks = {name: kinds == i for i, name in enumerate(KINDS)}
    return [Part(name, float(mask.mean()), tuple(float(x[mask].mean()) for x in nats)) for name, mask in masks.items() if mask.any()]


def by_position(sides: Sequence[Side]) -> list[Part]:
    """Each side's nats per character by how many tokens of its window each character was conditioned on, in doubling ranges.

    Each side has its own positions, since the windows of two models cut the text at different places.
    """
    parts = []
    for name, low, high in position_ranges(max(int(side.scores[0].char_position.max(initial=0)) for side in sides)):
        masks = [(side.scores[0].char_position >= low) & (side.scores[0].char_position < high) for side in sides]
        means = tuple(float(side.char_nats[mask].mean()) if mask.any() else float("nan") for side, mask in zip(sides, masks, strict=True))
        parts.append(Part(name, float(masks[0].mean()), means))
    return parts


def position_ranges(longest: int) -> list[tuple[str, int, int]]:
    """Name, begin and end of doubling ranges of places in a window: 1, 2–3, 4–7, … up to `longest`."""
    edges = [1] + [2**k for k in range(1, longest.bit_length() + 1) if 2**k <= longest] + [longest + 1]
    return [(f"{low}" if high == low + 1 else f"{low}–{high - 1}", low, high) for low, high in pairwise(edges)]


def most_different(a: Side, b: Side, text: str, *, length: int = 160) -> list[Passage]:
    """The passages of about `length` characters on which the sides differ most: half where a is better, half where b is; none overlap."""
    differences = a.char_nats - b.char_nats
    length = min(length, len(text))
    taken: list[int] = []
    for sign in (1, -1):
        taken += largest_windows(sign * differences, length, _PASSAGES, taken)
    return [_passage(text, differences, start, length, _firsts(a)) for start in taken]


def _passage(text: str, differences: Floats, start: int, length: int, answers: npt.NDArray[np.int64] | None) -> Passage:
    """The passage from word to word, shortened for it where words are short; with a line break, which is not scored, between answers."""
    begin, end = start, start + length
    if length > 40:
        spaces = [i for i in range(start, end) if text[i].isspace()]
        begin = next((i + 1 for i in spaces if i < start + 20), start) if start > 0 and not text[start - 1].isspace() else start
        end = next((i for i in reversed(spaces) if i >= end - 20), end) if end < len(text) and not text[end].isspace() else end
    shown, part = text[begin:end], differences[begin:end]
    delta = float(part.mean())
    if answers is not None:
        cuts = np.unique(answers[(answers > begin) & (answers < begin + len(shown))]) - begin
        shown = "\n".join(shown[a:b] for a, b in pairwise([0, *cuts.tolist(), len(shown)]))
        part = np.insert(part, cuts, 0.0)
    return Passage(begin, shown, part, delta)
