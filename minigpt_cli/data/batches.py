"""Batch number -> (x, y): a pure function of the seed, so that a resumed run needs no saved position. B batch, T tokens.

An epoch cuts the tokens into windows of T + 1 at an offset of its own and shows each once, in an order of its own. Windows
are numbered through all epochs; step s takes the next `batch_size * grad_accum * world_size` of them, whoever computes them.
Orders come from Philox (Salmon et al. 2011), a counter-based generator whose stream NumPy keeps stable between versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import TextTooShort

Starts = npt.NDArray[np.int64]

_SORTED_BITS = 21  # of the number of windows that are sorted together
_DRAWN = 1 << 20  # windows whose random values are drawn together
_EPOCH, _RANDOM = 1, 2  # second half of Philox's key: which stream


class Batches:
    """The training windows of every step."""

    def __init__(self, tokens: npt.NDArray[np.uint16 | np.uint32], config: RunConfig, *, rank: int = 0, world_size: int = 1) -> None:
        """Those of process `rank` of `world_size`. Raises TextTooShort if the tokens cannot fill one window and its target."""
        block_size = config.model.block_size
        if len(tokens) <= block_size:
            raise TextTooShort(f"{len(tokens)} tokens cannot fill block_size {block_size} + 1: use more text or a smaller --block-size")
        self._windows = sliding_window_view(np.asarray(tokens), block_size + 1)  # (N - T, T + 1), a view
        self._block_size, self._batch_size, self._grad_accum = block_size, config.optim.batch_size, config.optim.grad_accum
        self._seed, self._sampling, self._rank, self._world_size = config.seed, config.data.sampling, rank, world_size
        # One window fewer than might fit, where there is more than one, leaves the offset room to move.
        self.windows_per_epoch = max(1, (len(tokens) - block_size) // block_size)
        self._slack = min(block_size - 1, len(tokens) - 1 - self.windows_per_epoch * block_size)
        self._part_bits = max(1, self.windows_per_epoch.bit_length() - _SORTED_BITS)
        self._shift = np.uint64(64 - self._part_bits)
        self._epoch, self._part = lru_cache(maxsize=2)(self._draw_epoch), lru_cache(maxsize=2)(self._draw_part)

    @property
    def global_batch(self) -> int:
        """Windows in one step, over all processes and forward passes."""
        return self._batch_size * self._grad_accum * self._world_size

    def __call__(self, step: int, micro: int = 0) -> tuple[Tensor, Tensor]:
        """x and y of shape (B, T), int64; y is x shifted one token left."""
        windows = torch.from_numpy(self._windows[self.starts(step, micro)].astype(np.int64))  # (B, T + 1)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def starts(self, step: int, micro: int = 0) -> Starts:
        """Where the windows of one forward pass begin, (B,)."""
        first = (micro * self._world_size + self._rank) * self._batch_size  # within the step
        if self._sampling == "random":
            drawn = self._philox(_RANDOM, step).random_raw(self.global_batch)[first : first + self._batch_size]
            return (drawn % np.uint64(len(self._windows))).astype(np.int64)
        found, n_found = np.empty(self._batch_size, np.int64), 0
        while n_found < self._batch_size:
            epoch, place = divmod(step * self.global_batch + first + n_found, self.windows_per_epoch)
            ends, offset = self._epoch(epoch)
            part = int(np.searchsorted(ends, place, "right"))
            order = self._part(epoch, part)
            shown = order[place - int(ends[part]) + len(order) :][: self._batch_size - n_found]
            found[n_found : n_found + len(shown)] = shown * self._block_size + offset
            n_found += len(shown)
        return found

    def _draw_epoch(self, epoch: int) -> tuple[Starts, int]:
        """How many windows of an epoch are shown up to the end of each part of it, and where its first window begins.

        Windows are shown in the order of the random values that they have. A part has those of an equal range of values, so that each
        is sorted by itself and memory is bounded: 10 GB of characters have a hundred million windows.
        """
        philox, counts = self._philox(_EPOCH, epoch), np.zeros(1 << self._part_bits, np.int64)
        for _, raw in self._values(philox):
            counts += np.bincount((raw >> self._shift).astype(np.int64), minlength=len(counts))
        return np.cumsum(counts), int(philox.random_raw(1)[0] % np.uint64(self._slack + 1))

    def _draw_part(self, epoch: int, part: int) -> Starts:
        """The numbers of the windows in a part of an epoch, in the order in which they are shown."""
        values, windows = [], []
        for first, raw in self._values(self._philox(_EPOCH, epoch)):
            chosen = np.flatnonzero(raw >> self._shift == part)
            values.append(raw[chosen])
            windows.append(chosen + first)
        return np.concatenate(windows)[np.argsort(np.concatenate(values), kind="stable")]

    def _values(self, philox: np.random.Philox) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
        """The random values of the windows of an epoch, some at a time with the number of the first."""
        for first in range(0, self.windows_per_epoch, _DRAWN):
            yield first, philox.random_raw(min(_DRAWN, self.windows_per_epoch - first))

    def _philox(self, stream: int, number: int) -> np.random.Philox:
        """A generator for one epoch or step: 2^64 values that overlap no other's."""
        return np.random.Philox(key=np.array([self._seed, stream], np.uint64), counter=np.array([0, number, 0, 0], np.uint64))
