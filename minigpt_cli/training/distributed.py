"""One run on several processes: who writes, how they agree, how gradients are averaged.

Started by torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE; without them every function here is a cheap no-op.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_PATIENCE = timedelta(minutes=10)  # how long a process waits for the others before it gives up


@dataclass(frozen=True)
class World:
    """The processes that train one run together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_writer(self) -> bool:
        """One process alone writes the run directory and the screen."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """This process's device of a kind."""
        return torch.device(kind, self.local_rank) if kind == "cuda" else torch.device(kind)

    def agree(self, value: int, device: torch.device) -> int:
        """The largest `value` of any process, known to all: a signal or an error in one reaches every one."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared.item())

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over the processes."""
        if self.size == 1:
            return value
        shared = value.detach().clone()
        dist.all_reduce(shared)
        return shared / self.size

    def share(self, value: Any) -> Any:
        """The writer's `value`, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, by rank, in every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()


def world_from_environment() -> World:
    """The place of this process among torchrun's, or the only one."""
    return World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def joined(device_type: str) -> Iterator[World]:
    """Join the other processes for the length of a `with`: NCCL between GPUs, gloo between CPUs."""
    world = world_from_environment()
    if world.size == 1:
        yield world
        return
    if device_type == "cuda":
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield world
        with suppress(RuntimeError):  # another failed and is gone: it has said so
            world.wait()  # whoever leaves while the others still talk breaks their connections, and gloo then aborts
    finally:
        dist.destroy_process_group()


def replicate(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over the processes after each backward pass (DDP)."""
    if world.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, find_unused_parameters=_is_sparse(model)
    )


def shard(model: nn.Module) -> nn.Module:
    """The model with its weights, gradients and later its optimizer state split over the processes (FSDP2), block by block."""
    from torch.distributed.fsdp import fully_shard

    for block in getattr(model, "blocks", []):
        fully_shard(block)
    fully_shard(model)
    return model


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of `tensor`, on the device of `parameter` and split as FSDP2 split that."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or tensor.shape != parameter.shape:  # scalars, like AdamW's step count, are in every process
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(parameter.device), mesh, parameter.placements)  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 split, put together again; any other as it is. Every process must call it."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def without_averaging(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Gradients of all but the `last` of several accumulated passes stay in their own process."""
    no_sync = getattr(model, "no_sync", None)
    return nullcontext() if last or no_sync is None else no_sync()


def _is_sparse(model: nn.Module) -> bool:
    """Experts that no token chose have no gradient in this process, though they may have in another."""
    return hasattr(model.config, "n_experts")
