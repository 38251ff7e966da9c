"""How fast a model of any shape trains on this machine, from a few steps of two to five shapes.

A step is arithmetic, memory traffic and a delay for each layer, one after another. The three speeds of a machine are found from measured
steps, and give the time of a step that was not measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from minigpt_cli.config import ModernConfig, RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.training.device_batches import DeviceBatches
from minigpt_cli.training.distributed import World
from minigpt_cli.training.state import TrainingState

_PASSES = 50  # over the residual stream's float32 values, by what is not a matrix product, in a layer's step
_LOGITS_PASSES = 4  # over the logits
_WEIGHT_PASSES = 5  # over the weights by the optimizer
_ORTHOGONAL = 310  # floating-point operations of Muon's iteration for one layer, over width³
_TRIED = ((2, 64, 8), (2, 64, 32), (2, 256, 16), (4, 512, 32), (8, 1024, 64))  # layers, width, windows
_TRIALS_S = 0.5  # of steps; the shapes after the second are tried while time is left
_LONG_STEP_S = 0.12  # after such a step nothing larger is tried


class Work(NamedTuple):
    """What a training step consists of."""

    flops: float
    traffic: float  # bytes
    layers: int

    @classmethod
    def of(cls, model: ModernConfig, windows: int, vocab_size: int) -> Work:
        """The work of a step of so many windows."""
        L, C, T = model.n_layer, model.n_embd, model.block_size
        tokens = windows * T
        products = L * (72 * C**2 + 12 * T * C) + 6 * C * vocab_size  # a token, forward and backward
        stream = 4 * (_PASSES * L * C + _LOGITS_PASSES * vocab_size)
        weights = 12 * L * C**2 + 2 * C * vocab_size
        return cls(tokens * products + _ORTHOGONAL * L * C**3, tokens * stream + 4 * _WEIGHT_PASSES * weights, L + 1)


class Machine(NamedTuple):
    """Three speeds."""

    flops_per_s: float
    bytes_per_s: float
    delay_s: float  # for each layer

    def step_s(self, work: Work) -> float:
        """The expected seconds of a step."""
        return work.flops / self.flops_per_s + work.traffic / self.bytes_per_s + work.layers * self.delay_s


_TYPICAL = Machine(flops_per_s=340e9, bytes_per_s=20e9, delay_s=1.5e-3)  # one core of an EPYC with bfloat16 products
_TRUST = 0.1  # in its proportions, where one measured step counts 1


def fitted(steps: Sequence[tuple[Work, float]]) -> Machine:
    """The machine that explains measured steps (work, seconds) best, with the proportions of _TYPICAL where they say nothing else."""
    typical = np.array([1 / _TYPICAL.flops_per_s, 1 / _TYPICAL.bytes_per_s, _TYPICAL.delay_s])
    shares = np.array([w for w, _ in steps], float) * typical / np.array([[s] for _, s in steps])  # of the measured seconds
    scale = 1 / np.median(shares.sum(1))
    rows = np.vstack([shares * scale, _TRUST * np.eye(3)])
    found = np.linalg.lstsq(rows, np.array([1.0] * len(steps) + [_TRUST] * 3), rcond=None)[0]
    per_flop, per_byte, delay_s = (float(x) for x in np.maximum(found, _TRUST) * scale * typical)
    return Machine(1 / per_flop, 1 / per_byte, delay_s)


def measured(config: RunConfig, dataset: Dataset, limit_s: float) -> Machine:
    """This machine with the device, precision and threads of `config`, from steps of about `limit_s` seconds, at most half a second."""
    limit_s = min(_TRIALS_S, limit_s)
    steps: list[tuple[Work, float]] = []
    begun = time.perf_counter()
    for layers, width, windows in _TRIED:
        if len(steps) >= 2 and (time.perf_counter() - begun > limit_s or steps[-1][1] > _LONG_STEP_S):
            break
        block = min(128, config.model.block_size)
        model = ModernConfig(n_layer=layers, n_embd=width, n_head=width // 32, block_size=block)
        trial = config.model_copy(update={"model": model}).changed(optim={"batch_size": windows, "grad_accum": 1, "max_steps": 1_000_000})
        steps.append((Work.of(model, windows, dataset.tokenizer.vocab_size), _step_s(trial, dataset, limit_s / 4)))
    return fitted(steps)


def _step_s(config: RunConfig, dataset: Dataset, limit_s: float) -> float:
    """Seconds of the fastest of a few steps; the first is warm-up."""
    device = torch.device(config.compute.device)
    state = TrainingState(config, dataset.tokenizer.vocab_size, device)
    batches, best = DeviceBatches(config, dataset, device, World()), float("inf")
    begun = time.perf_counter()
    for step in range(5):
        start = time.perf_counter()
        state.step(step, batches).loss.item()
        if step:
            best = min(best, time.perf_counter() - start)
        if step >= 2 and time.perf_counter() - begun > limit_s:
            break
    return best
