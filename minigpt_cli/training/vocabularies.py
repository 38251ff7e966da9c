"""The ways in which a text could be cut into tokens, and how many tokens it would then have."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from minigpt_cli.config import RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared_folder
from minigpt_cli.tokenization.bpe import BPETokenizer
from minigpt_cli.tokenization.contract import END_OF_TEXT, TrainingText

SIZES = (512, 1024, 2048)  # of learned byte pairs
FEWEST_CHARS = 250_000  # of training text; read often, less text is worse in byte pairs
_SAMPLE, _HELD_BACK, _PIECES = 160_000, 80_000, 8  # characters that pairs are learned from and counted on, in so many pieces
_SECONDS_A_CHAR = 0.6e-6  # to learn byte pairs and to encode the text
_PREPARED_SHARE = 0.1  # of a time budget, at most


class Text(NamedTuple):
    """A text cut in one way."""

    tokenizer: str
    vocab_size: int
    train_tokens: int
    val_tokens: int
    chars_per_token: float


def present(dataset: Dataset) -> Text:
    """The text as it is cut now."""
    n = len(dataset.train.tokens)
    return Text(dataset.tokenizer.name, dataset.tokenizer.vocab_size, n, len(dataset.val.tokens), dataset.train.n_chars / n)


def possible(config: RunConfig, given: Collection[str], dataset: Dataset) -> list[Text]:
    """The text as it is cut now and, where nobody chose a tokenizer, in byte pairs; their tokens are estimated from a sample."""
    now, chars = present(dataset), dataset.train.n_chars
    fixed = {"tokenizer", "vocab_size"} & set(given) or prepared_folder(config.data) is not None or dataset.chats
    too_long = chars * _SECONDS_A_CHAR > _PREPARED_SHARE * config.optim.time_budget
    if fixed or too_long or now.tokenizer != "char" or chars < FEWEST_CHARS:
        return [now]
    texts = [now]
    learned, counted = _samples(dataset)
    data = config.data.model_copy(update={"tokenizer": "bpe", "vocab_size": SIZES[-1]})
    pairs = BPETokenizer.build(data, TrainingText(TrainingText.of(learned).alphabet, len(learned), lambda: iter([learned])))
    for size in SIZES:
        rate = len(pairs.smaller(size).encode(counted)) / len(counted)
        train, val = (round(split.n_chars * rate) + split.n_documents for split in (dataset.train, dataset.val))
        texts.append(Text("bpe", size, train, val, chars / train))
    return texts


def _samples(dataset: Dataset) -> tuple[str, str]:
    """Text to learn byte pairs from and other text to count them on, both from all over the training text."""
    tokens, learned, counted = dataset.train.tokens, [], []
    for piece in range(_PIECES):
        start = piece * len(tokens) // _PIECES
        text = dataset.tokenizer.decode(tokens[start : start + (_SAMPLE + _HELD_BACK) // _PIECES]).replace(END_OF_TEXT, "\n")
        learned.append(text[: _SAMPLE // _PIECES])
        counted.append(text[_SAMPLE // _PIECES :])
    return "".join(learned), "".join(counted)
