"""How much memory a training step needs, and the error when there is not enough."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.storage.memory import available_memory, ran_out

_SAFE_SHARE = 0.85  # of the free memory; the rest is for temporaries and for other programs
_WORKSPACE = 96 << 20  # bytes: modules loaded later, kernels built for the shape, the final score; 20 to 95 MB were measured
_TEMPORARIES = 1.3  # the backward pass also holds gradients of activations


class Need(NamedTuple):
    """Bytes of a training step: a fixed part, and a part per window of the batch."""

    fixed: int
    per_window: int

    def of(self, batch_size: int) -> int:
        return self.fixed + self.per_window * batch_size

    def largest_batch(self, available: int) -> int:
        """The largest batch that fits; 0 if not even one window does."""
        return max(0, int((available * _SAFE_SHARE - self.fixed) // max(1, self.per_window)))


class OutOfMemory(MiniGPTError):
    """A training step of this size does not fit in the device's memory."""


def measure(config: RunConfig, vocab_size: int) -> Need:
    """The memory that a step needs, from the activations that forward passes of one and of two windows keep."""
    from minigpt_cli.training.state import TrainingState, trial_teacher

    quiet = config.changed(compute={"compile": "off", "device": "cpu", "fsdp": False})
    end = 0 if config.data.document_mask else None
    state = TrainingState(quiet, vocab_size, torch.device("cpu"), end_of_text=end, teacher=trial_teacher(config, vocab_size))
    one, two = (_kept_bytes(state, n, config.model.block_size) for n in (1, 2))
    n_params = sum(p.numel() for p in state.model.parameters())
    copies = 2 + bool(config.optim.ema) + bool(config.distil.teachers)  # weights, gradients, average, teacher
    return Need(fixed=4 * n_params * copies + state.optimizer.state_bytes + _WORKSPACE, per_window=int((two - one) * _TEMPORARIES))


def _kept_bytes(state: object, batch_size: int, block_size: int) -> int:
    """Bytes that autograd keeps for the backward pass of one batch, each storage counted once."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(batch_size, block_size, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, aux_loss = state.loss(ids, ids)  # type: ignore[attr-defined]
    total = sum(seen.values())
    del loss, aux_loss
    return total


def available(device: torch.device) -> int | None:
    """Free bytes on `device`; None where this is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return available_memory()


def peak(device: torch.device) -> int | None:
    """The most memory that this process has held: on a GPU in tensors, on a CPU altogether; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    try:
        import resource
    except ImportError:
        return None
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def too_large(config: RunConfig, fits: int) -> OutOfMemory:
    """The error that suggests a batch that would fit."""
    where = f"{config.compute.device} memory"
    batch = config.optim.batch_size
    if fits < 1:
        return OutOfMemory(
            f"this model does not fit in {where} even with --batch-size 1: use a smaller --n-embd, --n-layer or --block-size"
        )
    return OutOfMemory(
        f"--batch-size {batch} does not fit in {where}: about --batch-size {min(fits, batch - 1)} would; or add --auto-batch"
    )


def smaller(config: RunConfig, world_size: int) -> RunConfig | None:
    """What --auto-batch does when memory runs out: the same run with half the batch, accumulated twice as often.

    None without --auto-batch, where the batch cannot be halved, and with several processes.
    """
    optim = config.optim
    if not optim.auto_batch or optim.batch_size % 2 or world_size > 1:
        return None
    return config.changed(optim={"batch_size": optim.batch_size // 2, "grad_accum": optim.grad_accum * 2})


def smaller_notice(config: RunConfig) -> str:
    """The notice that training continues with the smaller batch of `config`."""
    batch, accum = config.optim.batch_size, config.optim.grad_accum
    return f"memory ran out: continuing with batches of {batch}, accumulated {accum} times, at the same total"


def release_memory() -> None:
    """Release the memory of the last attempt."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextmanager
def explained_out_of_memory(config: RunConfig) -> Iterator[None]:
    """Turn every kind of out-of-memory error into one line with a batch size that would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise too_large(config, config.optim.batch_size // 2) from error
