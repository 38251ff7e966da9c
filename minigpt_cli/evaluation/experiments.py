"""What an experiment measures besides scores: a text learned by heart, both modes of dropout, what is written at some settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from minigpt_cli.evaluation.evaluate_run import dataset_of, evaluate_run
from minigpt_cli.evaluation.memorisation import copied_lengths
from minigpt_cli.evaluation.overfitting import Memorisation, memorisation, sampled, spread, training_pieces
from minigpt_cli.events import Evaluated
from minigpt_cli.generation.samples import distinct
from minigpt_cli.generation.sampling import Sampling
from minigpt_cli.runstore.directory import Run

BY_HEART = 0.1  # nats per token: a text with a lower training loss is learned by heart
COPY = 20  # characters of the shortest passage that counts as copied
_WINDOWS = 64  # of the training text, read with dropout and without


def learned_by_heart(run: Run) -> tuple[Memorisation, Evaluated | None]:
    """What the last weights of a run remember of its training text, and the first evaluation at which they knew it by heart."""
    reached = next((event for event in run.metrics() if event.train_loss is not None and event.train_loss < BY_HEART), None)
    return memorisation(run, ckpt="last"), reached


def both_modes(run: Run) -> tuple[float, float]:
    """Nats per token of the best weights on training text, in training mode (dropout on) and in evaluation mode (off)."""
    from minigpt_cli import checkpoints
    from minigpt_cli.evaluation.part_costs import dropout_readings

    loaded, tokens = checkpoints.load(run, "best", "cpu"), dataset_of(run).train.tokens
    block = loaded.config.model.block_size
    starts = np.linspace(0, len(tokens) - block - 1, _WINDOWS).astype(int)
    on, off = dropout_readings(loaded.model, np.stack([tokens[start : start + block + 1] for start in starts]).astype(np.int64))
    return sum(on) / len(on), off[0]


@dataclass(frozen=True)
class Writing:
    """Some texts, measured."""

    nats_per_char: float | None  # under the model itself
    distinct_words: float  # the share of words that are the first of their kind
    repeated: float  # the share of word triples that stood before
    copied: float  # the share of characters in passages of COPY characters or more that stand in the training text
    longest_copy: int  # characters
    n_chars: int


def writings(run: Run, settings: Sequence[Sampling]) -> list[Writing]:
    """What the run writes with each of `settings`; last, as much unseen text of the validation split."""
    dataset = dataset_of(run)
    samples = [sampled(run, dataset, "best", setting) for setting in settings]
    texts = [[sample.text for sample in of_setting] for of_setting in samples]
    nats = [sum(nats for sample in of_setting for nats in sample.nats) for of_setting in samples]
    score = evaluate_run(run).score
    texts.append(spread(score.text.decode(), len(texts[0]), sum(map(len, texts[0]))))
    lengths = copied_lengths([text for group in texts for text in group], training_pieces(dataset))
    bounds = accumulate((sum(map(len, group)) for group in texts), initial=0)
    parts = [lengths[a:b] for a, b in pairwise(bounds)]
    per_char = [total / len(part) if len(part) else None for total, part in zip(nats, parts, strict=False)]
    return [_writing(group, mean, part) for group, mean, part in zip(texts, [*per_char, score.nats_per_char], parts, strict=True)]


def _writing(texts: Sequence[str], nats_per_char: float | None, lengths: npt.NDArray[np.int64]) -> Writing:
    joined, n_chars = "\n".join(texts), len(lengths)
    copied = np.zeros(n_chars, dtype=bool)
    for end in np.flatnonzero(lengths >= COPY).tolist():
        copied[end + 1 - lengths[end] : end + 1] = True
    share = float(copied.mean()) if n_chars else 0.0
    return Writing(nats_per_char, distinct(joined, 1), 1 - distinct(joined, 3), share, int(lengths.max(initial=0)), n_chars)
