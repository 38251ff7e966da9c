"""Losses of the present model on training text and on validation text. Does not use the random numbers of training.

With `eval_iters` 0 the validation loss is over the whole split, each token once, and the training loss over evenly spaced windows of the
training split. Otherwise both are over `eval_iters` batches of windows that are drawn once, from the seed, so that two evaluations differ
only by the model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from minigpt_cli.accel.install import cross_entropy
from minigpt_cli.bounds import NATS_LIMIT
from minigpt_cli.config import RunConfig
from minigpt_cli.data.chat import answer_chars, answers
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import context_of
from minigpt_cli.evaluation.scoring import Advance, token_nats
from minigpt_cli.evaluation.windows import batch_rows
from minigpt_cli.training.state import TrainingState

_FEWEST_TRAIN_TOKENS, _MOST_TRAIN_TOKENS = 8_192, 32_768  # where the validation split is measured whole
_EVALUATION_STREAM = 0xE7A1


def train_sample_tokens(val_tokens: int) -> int:
    """How many tokens of the training split an evaluation measures beside a whole validation split of so many: about as many."""
    return min(_MOST_TRAIN_TOKENS, max(_FEWEST_TRAIN_TOKENS, val_tokens))


class Measured(NamedTuple):
    """One evaluation; None for a number that was not finite, or absurdly large."""

    train_loss: float | None  # nats per token
    val_loss: float | None  # nats per token
    nats_per_char: float | None  # of the validation text
    val_nats: npt.NDArray[np.float64]  # nats of every measured validation token, in order


class Evaluator:
    """Evaluates `state` on windows that are chosen once."""

    def __init__(self, config: RunConfig, dataset: Dataset, state: TrainingState) -> None:
        self._state, self._dataset = state, dataset
        self._block, self._iters = config.model.block_size, config.eval.eval_iters
        self._windows = config.optim.batch_size * max(1, self._iters)
        train, val, tokenizer = dataset.train.tokens, dataset.val.tokens, dataset.tokenizer
        self._val_learned = learned = answers(val, tokenizer)  # of conversations; None: every token is learned
        self._train_learned = None if learned is None else answers(train, tokenizer)
        chars, count = (dataset.val.n_chars, len(val)) if learned is None else (answer_chars(val, learned, tokenizer), int(learned.sum()))
        self._chars_per_token = max(1, chars) / count
        generator = np.random.Generator(np.random.Philox(key=[config.seed, _EVALUATION_STREAM]))
        self._train_starts = self._starts(len(train), self._train_learned, generator)
        self._val_starts = self._starts(len(val), self._val_learned, generator)

    def __call__(self, advance: Advance = lambda done, total: None) -> Measured:
        val = self._dataset.val.tokens
        with self._state.measured():
            train = self._mean(self._sampled(self._dataset.train.tokens, self._train_starts, self._train_learned, advance))
            val_nats = self._sampled(val, self._val_starts, self._val_learned, advance) if self._iters else self._whole(advance)
        loss = self._mean(val_nats)
        return Measured(train, loss, None if loss is None else loss / self._chars_per_token, val_nats)

    def _starts(self, n_tokens: int, learned: npt.NDArray[np.bool_] | None, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Where the measured windows begin; of conversations, at least one of them has a target that is `learned`."""
        last = n_tokens - self._block - 1
        if self._iters:
            starts = generator.integers(0, last + 1, self._windows)
        else:
            wanted = train_sample_tokens(len(self._dataset.val.tokens))
            count = max(1, min(wanted, last) // self._block)
            starts = np.linspace(0, last, count).astype(np.int64)
        if learned is None or self._targets_of(learned, starts).any():
            return starts
        so_far = np.cumsum(learned)
        useful = np.flatnonzero(so_far[self._block :] > so_far[: -self._block])  # windows with an answer among their targets
        return useful[np.linspace(0, len(useful) - 1, len(starts)).astype(np.int64)]

    def _targets_of(self, tokens: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """The targets of the windows at `starts`, (windows, T)."""
        return np.asarray(tokens[starts[:, None] + np.arange(1, self._block + 1)])

    def _sampled(
        self, tokens: npt.NDArray[np.generic], starts: npt.NDArray[np.int64], learned: npt.NDArray[np.bool_] | None, advance: Advance
    ) -> npt.NDArray[np.float64]:
        """Nats of every token of the windows at `starts`, each scored as a separate text; only of the `learned` tokens, where these are
        given."""
        windows = tokens[starts[:, None] + np.arange(self._block + 1)].astype(np.int64)  # (N, T + 1)
        state, losses = self._state, []
        rows = batch_rows(self._block, self._dataset.tokenizer.vocab_size)
        with torch.inference_mode():
            for part in np.array_split(windows, math.ceil(len(windows) / rows)):
                ids = torch.from_numpy(part).to(state.device)
                logits = state.model(ids[:, :-1]).logits  # (n, T, V)
                losses.append(cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), "none"))
                advance(min(len(losses) * rows, len(windows)) * self._block, len(windows) * self._block)
        nats = torch.cat(losses).cpu().double().numpy()
        return nats if learned is None else nats[self._targets_of(learned, starts).reshape(-1)]

    def _whole(self, advance: Advance) -> npt.NDArray[np.float64]:
        val = self._dataset.val.tokens
        context = context_of(self._dataset, "val", self._block)
        nats = token_nats(self._state.model, val, context=context, block_size=self._block, advance=advance)
        return nats if self._val_learned is None else nats[self._val_learned]

    @staticmethod
    def _mean(nats: npt.NDArray[np.float64]) -> float | None:
        mean = float(nats.mean())
        return mean if abs(mean) <= NATS_LIMIT / 1000 else None  # a character may be several tokens
