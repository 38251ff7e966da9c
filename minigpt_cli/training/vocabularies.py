"""The ways in which a text could be cut into tokens, how many tokens it would then have, and what they would be worth.

Byte pairs help where the same words return, less in names, and not in Chinese: a count of bigrams, of characters and of byte pairs, shows
that on text held back in a second or two.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared_folder
from minigpt_cli.tokenization.bpe import BPETokenizer, learned_from
from minigpt_cli.tokenization.contract import END_OF_TEXT, Ids, TrainingText

SIZES = (512, 1024, 2048)  # of learned byte pairs
FEWEST_CHARS = 20_000  # of training text; less is not enough to measure what byte pairs would be worth
_FEWEST_TOKENS = 1_000  # for the same reason
_SAMPLE, _HELD_BACK, _PIECES = 160_000, 80_000, 8  # characters that pairs are learned from and measured on, in so many pieces
_LETTER_NATS = 3.1  # of a character of English prose, by its frequency alone
_DISCOUNT = 0.75  # of every counted bigram, for those that were not seen (Kneser & Ney 1995)
_LEARNED_S, _ENCODED_S = 0.5e-6, 0.12e-6  # for each character that byte pairs are learned from, and that is encoded
_PREPARED_SHARE = 0.35  # of a time budget, at most
_PARTS = (1, 4, 16, 64, 256, 1024)  # of a text too large to be cut whole in the time, one in so many characters
_FEWEST_OF_PART = 4_000_000  # characters; cutting fewer takes no time to speak of


class Text(NamedTuple):
    """A text cut in one way."""

    tokenizer: str
    vocab_size: int
    train_tokens: int
    val_tokens: int
    chars_per_token: float
    letters: float = 1.0  # of English that hold as much as a token, by how often each token of the vocabulary occurs
    gain: float = 1.0  # what counted bigrams of characters lose on text held back, over what those of these tokens lose
    is_cut: bool = True  # already
    prepared_s: float = 0.0  # seconds of the budget that cutting it takes
    max_chars: int = 0  # characters of the training text that are used, where not all are

    @property
    def data(self) -> dict[str, str | int]:
        """The settings that cut it this way, where it is not yet."""
        if self.is_cut:
            return {}
        part: dict[str, str | int] = {"max_chars": self.max_chars} if self.max_chars else {}
        return {"tokenizer": self.tokenizer, "vocab_size": self.vocab_size, **part}


def present(dataset: Dataset) -> Text:
    """The text as it is cut now."""
    tokens, tokenizer = dataset.train.tokens, dataset.tokenizer
    n, letters = len(tokens), _letters(np.concatenate(_pieces(tokens, _SAMPLE)))
    return Text(tokenizer.name, tokenizer.vocab_size, n, len(dataset.val.tokens), dataset.train.n_chars / n, letters)


def possible(config: RunConfig, given: Collection[str], dataset: Dataset, spent_s: float = 0.0) -> list[Text]:
    """The text as it is cut now and, where nobody chose a tokenizer or the size of its vocabulary, in byte pairs: all of it, and parts of
    one that is large. What they are like is estimated from a sample. `spent_s` of the time budget are gone."""
    now, chars = present(dataset), dataset.train.n_chars
    if "tokenizer" in given:
        fixed = config.data.tokenizer != "bpe" or "vocab_size" in given
    else:
        fixed = now.tokenizer != "char" or "vocab_size" in given
    is_short = chars < FEWEST_CHARS or now.train_tokens < _FEWEST_TOKENS
    if fixed or dataset.chats or is_short or prepared_folder(config.data) is not None:
        return [now]
    possible_parts = parts(chars, dataset.val.n_chars, config.optim.time_budget - spent_s)
    if "max_chars" in given:
        possible_parts = [part for part in possible_parts if not part]
    if not possible_parts:
        return [now]
    texts = [] if now.tokenizer == "bpe" else [now]
    text, held_back = _samples(dataset)
    lost = _bigram_nats(*_characters(text, held_back))
    data = config.data.model_copy(update={"tokenizer": "bpe", "vocab_size": SIZES[-1]})
    pairs = BPETokenizer.build(data, TrainingText(TrainingText.of(text).alphabet, len(text), lambda: iter([text])))
    for size in SIZES:
        smaller = pairs.smaller(size)
        learned, tokens = smaller.encode(text), smaller.encode(held_back)
        gain, letters = lost / _bigram_nats(learned, tokens), _letters(learned)
        rate = len(tokens) / len(held_back)
        train, val = (round(split.n_chars * rate) + split.n_documents for split in (dataset.train, dataset.val))
        if (now.tokenizer, now.vocab_size) == ("bpe", size):
            texts.append(now._replace(gain=gain))
        elif gain > 1:  # not for thousands of different characters, of which each is several bytes
            for part in possible_parts:
                share, prepared_s = (part or chars) / chars, cut_s(part or chars, dataset.val.n_chars, size)
                texts.append(Text("bpe", size, round(train * share), val, chars / train, letters, gain, False, prepared_s, part))
    return texts or [now]


def cut_s(train_chars: int, val_chars: int, vocab_size: int) -> float:
    """Seconds that it takes to learn byte pairs from a training text, and to encode it and the text to validate on."""
    return _LEARNED_S * min(train_chars, learned_from(vocab_size)) + _ENCODED_S * (train_chars + val_chars)


def parts(train_chars: int, val_chars: int, seconds: float) -> list[int]:
    """How many characters of a training text can be cut into byte pairs in a share of the seconds that are left; 0: all of them."""
    sizes = [train_chars // n for n in _PARTS if n == 1 or train_chars // n >= _FEWEST_OF_PART]
    quick = [n for n in sizes if cut_s(n, val_chars, SIZES[-1]) <= _PREPARED_SHARE * seconds]
    return [0 if n == train_chars else int(float(f"{n:.2g}")) for n in quick]


def _samples(dataset: Dataset) -> tuple[str, str]:
    """Text to learn from and other text to measure on, both from all over the training text."""
    tokens, wanted = dataset.train.tokens, (_SAMPLE + _HELD_BACK) * len(dataset.train.tokens) // dataset.train.n_chars
    pieces = _pieces(tokens, wanted)
    cut = len(pieces[0]) * _SAMPLE // (_SAMPLE + _HELD_BACK)
    return _text(dataset, [piece[:cut] for piece in pieces]), _text(dataset, [piece[cut:] for piece in pieces])


def _pieces(tokens: npt.NDArray[Any], wanted: int) -> list[Ids]:
    """About so many of the tokens, or nearly all, from all over."""
    far = max(1, len(tokens) // _PIECES)
    length = min(far, max(1, wanted // _PIECES))
    return [tokens[piece * far : piece * far + length].astype(np.uint32) for piece in range(_PIECES)]


def _text(dataset: Dataset, pieces: list[Ids]) -> str:
    return "".join(dataset.tokenizer.decode(piece).replace(END_OF_TEXT, "\n") for piece in pieces)


def _characters(text: str, other: str) -> tuple[Ids, Ids]:
    """Both texts as the numbers of their characters."""
    _, ids = np.unique(np.frombuffer((text + other).encode("utf-32-le"), dtype=np.uint32), return_inverse=True)
    return ids[: len(text)].astype(np.uint32), ids[len(text) :].astype(np.uint32)


def _letters(tokens: Ids) -> float:
    """The entropy of a token by its frequency alone, over that of an English letter."""
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum()) / _LETTER_NATS


def _bigram_nats(learned: Ids, tokens: Ids) -> float:
    """Nats that a count of the bigrams of `learned` loses over `tokens`, with absolute discounting."""
    V = int(max(learned.max(), tokens.max())) + 1
    counts = np.bincount(learned, minlength=V) + 0.1
    single = (counts / counts.sum())[tokens[1:]]
    bigrams, times = np.unique(learned[:-1].astype(np.int64) * V + learned[1:], return_counts=True)
    wanted = tokens[:-1].astype(np.int64) * V + tokens[1:]
    place = np.minimum(np.searchsorted(bigrams, wanted), len(bigrams) - 1)
    seen = np.where(bigrams[place] == wanted, times[place] - _DISCOUNT, 0.0)
    followed = np.bincount(learned[:-1], minlength=V)[tokens[:-1]]
    kinds = np.bincount(bigrams // V, minlength=V)[tokens[:-1]]
    known = (seen + _DISCOUNT * kinds * single) / np.maximum(followed, 1)
    return float(-np.log(np.where(followed > 0, known, single)).sum())
