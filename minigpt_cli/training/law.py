"""The loss that a training is expected to end with, from its size, its text and its settings: a small fitted law.

The form is that of data-constrained scaling (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models"): what a model is too
small for, plus what it has not seen,

    loss = E + (A / size^a + B / seen^b) / won + D vocabulary / text

in nats per character; size is the number of weights inside the blocks, seen the tokens read, which are worth more or less than fresh text
read one by one. A larger model learns more from a token. Passes over the same text are worth less each time, the less the larger the model
is for the text; dropout makes them last longer, and slows learning down. Teachers make them last longer too, and their own training takes
time. Passes over tokens that hold more than a letter each, byte pairs or Chinese characters, wear out sooner. A batch larger than the
critical one wastes tokens (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training"). A learned vocabulary knows the commonest
words, which leaves less to learn: won is gain^c, where gain is what a count of bigrams wins by it, times (vocabulary / 512)^w, since
counted bigrams say too little of large vocabularies; but each of its tokens has to be met often to be known, hence D (text is the training
text in tokens). A model that has read enough wins something more by a longer window. E belongs to the text and is the same for every plan
of it.

The coefficients were fitted with `tests/benchmarks/planning.py fit` to the runs in `tests/benchmarks/planning.csv`, but for those of
teachers, of `enough_tokens` and of `most_weights`, which were set by hand; RESULTS.md shows how well they predict texts that they were not
fitted to.
"""

from __future__ import annotations

from math import exp, log2, pow, sqrt
from typing import TYPE_CHECKING, NamedTuple

from minigpt_cli.config import RunConfig

if TYPE_CHECKING:
    from minigpt_cli.training.vocabularies import Text


class Training(NamedTuple):
    """What the loss depends on."""

    size: float  # weights inside the blocks
    tokens: float  # read over the whole run
    step_tokens: float  # in one step
    dropout: float
    text_tokens: float  # of the training split
    vocab_size: int
    letters: float = 1.0  # of English that hold as much as a token (vocabularies.py)
    gain: float = 1.0  # of the tokens over characters, by counted bigrams (vocabularies.py)
    window: float = 128.0  # tokens
    teachers: int = 0  # before it

    @classmethod
    def of(cls, config: RunConfig, text: Text, processes: int = 1) -> Training:
        """The training of a configuration, before its first token."""
        model, step_tokens = config.model, config.step_tokens(processes)
        dropout = getattr(model, "dropout", 0.0)
        cut = text.train_tokens, text.vocab_size, text.letters, text.gain
        return cls(weights(model), 0.0, step_tokens, dropout, *cut, model.block_size, config.distil.teachers)


class Law(NamedTuple):
    """The coefficients."""

    floor: float = 0.9  # E of English prose, nats per character
    small: float = 5.49  # A
    small_power: float = 0.266  # a
    unseen: float = 12.7  # B
    unseen_power: float = 0.243  # b
    quick: float = 0.0646  # by which a larger model learns more from a token (power)
    batch: float = 4960.0  # tokens of the critical batch after a million tokens
    batch_power: float = 0.6  # by which it grows with the tokens read
    batch_steep: float = 2.28  # by which tokens are wasted beyond it (power)
    passes: float = 6.67  # after which a pass is worth little, for as many weights as the text has tokens, of a letter each
    passes_power: float = 0.3  # by which that number falls with the weights for each token
    passes_dropout: float = 1.18  # by which dropout raises it (exponent)
    passes_teachers: float = 0.6  # by which one teacher raises it (share); several by the square root of their number times as much
    dropout: float = 2.78  # by which dropout slows learning down (exponent)
    packed: float = 0.777  # c: by which what is lost falls with the gain of the tokens,
    wide: float = 0.0357  # w: and with a vocabulary of byte pairs that is larger than 512
    sparse: float = 6.01  # D: nats per character for as many tokens in the vocabulary as in the training text
    window: float = 0.00969  # by which a window twice as long lowers the loss, once a model has learned to use it:
    window_after: float = 5.84e6  # tokens
    by_heart: float = 11.5  # passes after the first until a text is known by heart, for as many weights as it has tokens
    by_heart_power: float = 0.28  # by which that number falls with the weights for each token

    def nats_per_char(self, t: Training) -> float:
        """The expected loss."""
        lost = self.small / pow(t.size, self.small_power) + self.unseen / pow(self._seen(t), self.unseen_power)
        longer = self.window * log2(t.window / 128) * min(1.0, self._fresh(t) / self.window_after)
        return self.floor + lost / self._won(t) + self.sparse * t.vocab_size / t.text_tokens - longer

    def enough_tokens(self, t: Training) -> float:
        """The tokens after which this training has learned the text by heart and nothing more, at least those of 250 steps. Tokens that
        hold more are learned by heart in fewer passes; what teachers expect cannot be learned by heart so soon."""
        more = self.by_heart * pow(t.text_tokens / t.size, self.by_heart_power) * exp(self.passes_dropout * t.dropout) * (1 + t.teachers)
        return max((1 + more) / max(1.0, t.letters) * t.text_tokens, 250 * t.step_tokens)

    def _seen(self, t: Training) -> float:
        """Tokens of fresh text, read one by one, that would have taught a model of a million weights as much."""
        fresh = self._fresh(t)
        critical = self.batch * pow(fresh / 1e6, self.batch_power)
        fresh *= pow(t.size / 1e6, self.quick) * exp(-self.dropout * t.dropout)
        return fresh / (1 + pow(t.step_tokens / critical, self.batch_steep))

    def _fresh(self, t: Training) -> float:
        """Tokens of fresh text that would have taught as much as the passes over this one."""
        more, lasting = max(0.0, t.tokens / t.text_tokens - 1), self._lasting(t)  # passes after the first
        return min(t.tokens, t.text_tokens) + t.text_tokens * lasting * (1 - exp(-more / lasting))

    def _lasting(self, t: Training) -> float:
        lasting = self.passes * pow(t.text_tokens / t.size, self.passes_power) * exp(self.passes_dropout * t.dropout)
        return lasting * (1 + self.passes_teachers * sqrt(t.teachers)) / sqrt(max(1.0, t.letters))

    def _won(self, t: Training) -> float:
        """What the loss of characters is divided by."""
        return pow(t.gain, self.packed) * (pow(max(1.0, t.vocab_size / 512), self.wide) if t.gain > 1 else 1.0)


LAW = Law()


def weights(model: object) -> int:
    """The weights inside the blocks, about; 1 for a table."""
    return max(1, 12 * getattr(model, "n_layer", 0) * getattr(model, "n_embd", 0) ** 2)


def most_weights(text_tokens: int, letters: float) -> float:
    """The weights inside the blocks beyond which a model was no better, or worse, however long it was trained on this text."""
    return min(88_000 * pow(text_tokens, 0.32), 100 * text_tokens) / pow(max(1.0, letters), 0.4)


def learning_rates(width: int) -> dict[str, float]:
    """The peak learning rates of Muon and AdamW for a model of this width."""
    narrower = min(2.0, 128 / width)
    return {"muon_lr": round(0.03 * narrower**0.5, 4), "lr": round(6e-3 * narrower**0.5, 5)}
