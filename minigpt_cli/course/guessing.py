"""Shannon's guessing game (1951): a person is a language model too, scored in the unit of every other model. No torch.

The player sees 200 characters of text that no model was trained on, and guesses the next 40, each in up to three tries. A tried character
gets the share of its rank, (count of this rank so far + 1) / (characters so far + 4): the first, second and third try, and "none of them".
That last share is divided among the characters that were not tried, by their counts in the training text; the share of tries that were not
made is added to it. So at every moment all characters that may come next have probabilities that sum to 1, whatever is tried, and
-ln p of the character that comes is comparable with the nats of any model on the same characters.
All characters that the training text does not contain count as one, as for the baselines (evaluation/baselines.py); but one of them that
is tried gets the share of its rank.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np

from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import learned_text
from minigpt_cli.errors import TextTooShort, UsageError
from minigpt_cli.evaluation import baselines
from minigpt_cli.evaluation.baselines import Floats
from minigpt_cli.evaluation.characters import spelled
from minigpt_cli.evaluation.eval_target import Target
from minigpt_cli.evaluation.evaluate_run import evaluate_run, training_text
from minigpt_cli.evaluation.statistics import Estimate, mean_interval
from minigpt_cli.runstore.directory import Run

CONTEXT, LENGTH, TRIES = 200, 40, 3
_NONE = TRIES + 1  # the rank of a character that no try named
_PLACES = 1000  # of the held-out text that are looked at for a passage that can be typed


class Game:
    """One game. `guess` tries a character; after a hit or the third miss the next character is to be guessed."""

    def __init__(self, context: str, target: str, training: str) -> None:
        self.context, self.target = context, target
        self.ranks: list[int] = []  # of each character that is done: 1 to 3, or 4 where no try named it
        self.tried: list[str] = []  # for the character that is guessed now
        self._nats: list[float] = []
        counts = Counter(training)
        self._weights = {char: count + 1 for char, count in counts.items()}
        self._all_weights = len(training) + len(counts) + 1
        uniform, _, bigram = baselines.counted_nats(training, context + target)
        self._uniform, self._bigram = uniform[len(context) :], bigram[len(context) :]

    @property
    def position(self) -> int:
        """How many characters are done."""
        return len(self.ranks)

    @property
    def done(self) -> bool:
        return self.position == len(self.target)

    @property
    def shown(self) -> str:
        """The text that the player knows: the context and every character that is done."""
        return self.context + self.target[: self.position]

    @property
    def tries_left(self) -> int:
        """Tries for this character; 0 at the end of the game."""
        return 0 if self.done else TRIES - len(self.tried)

    def guess(self, char: str) -> bool:
        """Whether `char` is the next character. Raises UsageError for a second try of the same, and for anything but one character."""
        if self.done:
            raise UsageError("the game is over")
        if len(char) != 1:
            raise UsageError("type one character")
        if char in self.tried:
            raise UsageError("you tried this character already: try another")
        self.tried.append(char)
        hit = char == self.target[self.position]
        if hit:
            self._next(len(self.tried), self._share(len(self.tried)))
        elif len(self.tried) == TRIES:
            self.give_up()
        return hit

    def give_up(self) -> None:
        """Make no more tries for this character."""
        if self.done:
            raise UsageError("the game is over")
        share = sum(map(self._share, range(len(self.tried) + 1, _NONE + 1)))
        left = self._all_weights - sum(self._weights.get(char, 0) for char in self.tried)
        self._next(_NONE, share * self._weights.get(self.target[self.position], 1) / left)

    def _share(self, rank: int) -> float:
        """The probability of a rank, before the next character is known."""
        return (self.ranks.count(rank) + 1) / (self.position + _NONE)

    def _next(self, rank: int, probability: float) -> None:
        self._nats.append(-math.log(probability))
        self.ranks.append(rank)
        self.tried = []

    @property
    def nats(self) -> Floats:
        """Nats of each character that is done, (position,)."""
        return np.array(self._nats)

    @property
    def nats_per_char(self) -> float:
        """The player's mean over the characters that are done."""
        return float(self.nats.mean())

    @property
    def uniform(self) -> float:
        """Nats per character of the same characters where all are equally likely."""
        return float(self._uniform[: self.position].mean())

    @property
    def bigram(self) -> float:
        """Nats per character of the same characters by counted pairs."""
        return float(self._bigram[: self.position].mean())

    @property
    def data(self) -> dict[str, Any]:
        """What the journal keeps of the game: enough to score models on the same characters later."""
        return {
            "n_chars": self.position,
            "nats_per_char": round(self.nats_per_char, 4),
            "uniform": round(self.uniform, 4),
            "bigram": round(self.bigram, 4),
            "ranks": self.ranks,
            "nats": _rounded(self.nats),
            "bigram_nats": _rounded(self._bigram[: self.position]),
            "context": self.context,
            "target": self.target[: self.position],
        }


def game_on(dataset: Dataset, seed: int) -> Game:
    """A game on a passage of a text's validation split, drawn by `seed`. Raises TextTooShort."""
    training = training_text(dataset, baselines.TRAINING_CHARS)
    context, target = passage(spelled(*learned_text(dataset, "val")), training, seed)
    return Game(context, target, training)


def passage(held_out: str, training: str, seed: int) -> tuple[str, str]:
    """Context and target from a text, at a random place; where it can be, the target has characters that keyboards have and that the
    training text has. Raises TextTooShort."""
    if (places := len(held_out) - CONTEXT - LENGTH + 1) <= 0:
        raise TextTooShort(
            f"the validation split has {len(held_out):,} characters, and the game needs {CONTEXT + LENGTH}: use a longer text"
        )
    known = {char for char in set(training) if char == "\n" or " " <= char <= "~" or char.isalnum()}
    draw = random.Random(seed)
    starts = [draw.randrange(places) + CONTEXT for _ in range(_PLACES)]
    at = next((start for start in starts if known.issuperset(held_out[start : start + LENGTH])), starts[0])
    return held_out[at - CONTEXT : at], held_out[at : at + LENGTH]


def model_nats(run: Run, context: str, target: str) -> Floats:
    """Nats of each character of `target` under a run that reads as much of the text before it as fits, (len(target),)."""
    found = evaluate_run(run, Target(text=context + target, label="the game", stride=1))
    return found.score.char_nats[len(context) :]


def model_data(run: Run, game: dict[str, Any]) -> dict[str, Any]:
    """What the journal keeps of a run on the characters of a game, given the game's `data`."""
    nats = model_nats(run, game["context"], game["target"])
    return {"run": run.name, "n_chars": len(nats), "nats_per_char": round(float(nats.mean()), 4), "nats": _rounded(nats)}


def difference(a: Floats, b: Floats) -> Estimate:
    """The mean of a - b over the same characters. So few characters give a wide interval; pairs of neighbours are kept together, because
    one hard word costs several characters in a row."""
    return mean_interval(np.asarray(a) - np.asarray(b), block=2)


def _rounded(nats: Floats) -> list[float]:
    return [round(float(value), 4) for value in nats]
