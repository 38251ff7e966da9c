"""Batches on the training device; on a GPU the next batch is copied while the present one is computed."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from minigpt_cli.config import RunConfig
from minigpt_cli.data.batches import Batches
from minigpt_cli.data.chat import answers
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.errors import UsageError
from minigpt_cli.training.distributed import World

IGNORED = -100  # a target that the cross-entropy ignores
_MOST_AHEAD = 1000  # steps to search for an answer


class DeviceBatches:
    """(step, micro) → x, y of shape (B, T) on the device; they depend only on the seed and these two numbers."""

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device, world: World) -> None:
        windows = partial(Batches, config=config, rank=world.rank, world_size=world.size)
        self._batches = windows(dataset.train.tokens)
        learned = answers(dataset.train.tokens, dataset.tokenizer)
        self._learned = None if learned is None else windows(learned.astype(np.uint16))  # the same windows, of ones and zeros
        self._accumulated, self._device = config.optim.grad_accum, device
        self._ahead: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None

    def __call__(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        if self._device.type != "cuda":
            x, y = self._draw(step, micro)
            return x.to(self._device), y.to(self._device)
        wanted = (step, micro)
        batch = self._ahead[1] if self._ahead is not None and self._ahead[0] == wanted else self._copy(*wanted)
        following = (step, micro + 1) if micro + 1 < self._accumulated else (step + 1, 0)
        self._ahead = (following, self._copy(*following))  # copied while the GPU computes `batch`
        return batch

    def _draw(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """x, y; of conversations, y is IGNORED wherever the token is not part of an answer. A batch without an answer is replaced with the
        next step's batch that has one."""
        if self._learned is None:
            return self._batches(step, micro)
        for later in range(step, step + _MOST_AHEAD):
            _, learned = self._learned(later, micro)
            if learned.any():
                x, y = self._batches(later, micro)
                return x, y.masked_fill(learned == 0, IGNORED)
        raise UsageError(
            f"no answer lies in the next {_MOST_AHEAD} batches: use a larger --batch-size, or conversations with longer answers"
        )

    def _copy(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        x, y = self._draw(step, micro)
        return x.pin_memory().to(self._device, non_blocking=True), y.pin_memory().to(self._device, non_blocking=True)
