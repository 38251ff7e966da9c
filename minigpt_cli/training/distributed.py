"""One run on several processes: which process decides, how the others learn of it, how gradients are averaged.

torchrun starts the processes and sets RANK, LOCAL_RANK and WORLD_SIZE; without them every function here is a cheap no-op. The first
process leads: only this one reads the command line, the clock and the folders, decides, writes and prints. The others follow: they take
part in the jobs that it announces (commands/processes.py), and it sends them every later decision (`World.lead`).
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from minigpt_cli.errors import MiniGPTError, UsageError

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=10)  # of a collective operation: then the other processes count as lost
_LEAVE_S = 3.0  # how long the first process waits until the others know that it ends
_ASK_AGAIN_S = 0.05  # while waiting for a message
CLOSED, FAILED = b"closed", b"failed"  # sent in place of a value: the first process has ended, or its action failed
_LOST = (
    "gloo",
    "nccl",
    "connection",
    "socket",
    "broken pipe",
    "timed out",
    "process group",
)  # in the messages of failed collective operations


class Cancelled(Exception):
    """In a process that follows: the first process has ended the common work and printed why."""


class PeerLost(MiniGPTError):
    """Another process of this training has ended or cannot be reached."""


class Channel:
    """Sends values from the first process to all others, in order, through a store that keeps them until they are read."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank, self._count = store, rank, 0
        self.closed = False

    def send(self, message: bytes) -> None:
        """Send a message to the others."""
        self._store.set(str(self._count), message)  # type: ignore[arg-type] # bytes are taken as they are
        self._count += 1

    def close(self, size: int) -> None:
        """Send that this was the last message, and wait until all have read it: the store ends with this process, and reading it then
        fails."""
        self.send(CLOSED)
        deadline = time.monotonic() + _LEAVE_S
        others = [f"heard/{rank}" for rank in range(1, size)]
        while not self._store.check(others) and time.monotonic() < deadline:
            time.sleep(_ASK_AGAIN_S)

    def receive(self) -> Any:
        """Wait for the next value; signals are handled meanwhile. Raises Cancelled after a failure, or if no value will come."""
        message = self._wait_for(str(self._count))
        self._count += 1
        if message == CLOSED:
            self.closed = True
            self._store.set(f"heard/{self._rank}", "")  # the store may end at any moment from here on
        if message in (CLOSED, FAILED):
            raise Cancelled
        return pickle.loads(message)  # from a process of this training

    def _wait_for(self, key: str) -> bytes:
        """Wait for the value of `key`. The store is read in a thread: over a dead network a read takes a quarter of an hour to fail, and no
        signal is handled meanwhile."""
        answers: SimpleQueue[bytes | RuntimeError | None] = SimpleQueue()

        def ask() -> None:
            try:
                while not self._store.check([key]):
                    answers.put(None)
                    time.sleep(_ASK_AGAIN_S)
                answers.put(self._store.get(key))
            except RuntimeError as error:
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        while True:
            try:
                answer = answers.get(timeout=_TIMEOUT.total_seconds())
            except Empty:
                raise RuntimeError("timed out: the store does not answer") from None
            if isinstance(answer, RuntimeError):
                raise answer
            if answer is not None:
                return answer


@dataclass
class World:
    """The processes that train one run together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    channel: Channel | None = None
    shared_error: MiniGPTError | None = None  # the last error that every process knows
    broken: bool = False  # an error that the others do not know has made further common work impossible

    @property
    def leads(self) -> bool:
        """Whether this process decides, writes the run directory and prints."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """This process's device of a kind."""
        return torch.device(kind, self.local_rank) if kind == "cuda" else torch.device(kind)

    def lead(self, action: Callable[[], T]) -> T:
        """What `action` returns in the first process, in every process. The others do not run it; they raise Cancelled if it fails.

        They wait as long as it takes, and handle signals meanwhile.
        """
        if self.channel is None:
            return action()
        if not self.leads:
            return self.channel.receive()  # type: ignore[no-any-return]
        try:
            value = action()
        except MiniGPTError as error:
            self.channel.send(FAILED)
            self.shared_error = error
            raise
        self.channel.send(pickle.dumps(value))
        return value

    def each(self, action: Callable[[], T]) -> T:
        """Run `action` in every process and return its own result; if it fails in one process, it fails in all, and the first raises the
        error."""
        if self.channel is None:
            return action()
        value: list[T] = []
        problem: MiniGPTError | None = None
        try:
            value.append(action())
        except MiniGPTError as error:
            problem = error
        problems = self.gather(problem and (str(problem), problem.exit_code))
        if not any(problems):
            return value[0]
        if not self.leads:
            raise Cancelled
        if problem is None:
            message, code = next(found for found in problems if found)
            problem = UsageError(message) if code == UsageError.exit_code else MiniGPTError(message)
        self.shared_error = problem
        raise problem

    @contextmanager
    def announced(self, job: object) -> Iterator[None]:
        """In the first process: have the others take part in `job` during a `with`; they get it from `announcements`."""
        self.lead(lambda: job)
        try:
            yield
        except BaseException as error:
            self.broken = self.size > 1 and error is not self.shared_error
            raise

    def announcements(self) -> Iterator[Any]:
        """In a process that follows: what the first one announces, until it ends."""
        while self.channel is not None and not self.channel.closed:
            with suppress(Cancelled):
                yield self.channel.receive()

    def agree(self, value: int, device: torch.device) -> int:
        """The largest `value` of any process, in all: so a signal to one, or its clock, stops every one."""
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

    def gather(self, value: T) -> list[T]:
        """The `value` of every process, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined() -> Iterator[World]:
    """Join the other processes of torchrun during a `with`: gloo between CPUs, NCCL between GPUs. Raises PeerLost if one is lost."""
    try:
        world, channel = _join()
        closes = world.leads
        try:
            yield world
        except RuntimeError as error:
            closes = closes and not _is_broken(error)  # perhaps nobody can be reached
            raise
        finally:
            if closes:
                with suppress(RuntimeError):
                    channel.close(world.size)
    except RuntimeError as error:
        if not _is_broken(error):
            raise
        raise PeerLost(
            "another process of this training has ended or cannot be reached: the last save is complete; "
            "start all of them again, with --resume RUN to continue from it"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_broken(error: RuntimeError) -> bool:
    """Whether torch reports a lost connection; it has no class of errors for that."""
    return any(word in str(error).lower() for word in _LOST)


def _join() -> tuple[World, Channel]:
    store, rank, size = next(iter(rendezvous("env://")))
    channel = Channel(PrefixStore("told", store), rank)
    together = World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), channel)
    backend = together.lead(lambda: "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if "cuda" in backend and torch.cuda.is_available():
        torch.cuda.set_device(together.local_rank)
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=_TIMEOUT)
    return together, channel


def replicate(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over the processes after each backward pass (DDP)."""
    if world.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=hasattr(model.config, "n_experts"),  # an expert that no token chose here may have a gradient elsewhere
    )


def shard(model: nn.Module) -> nn.Module:
    """The model with the first process's weights, split with their gradients and later the optimizer state over the processes (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    for tensor in model.state_dict().values():  # another machine may have drawn other weights; DDP does the same
        dist.broadcast(tensor, src=0)
    for block in getattr(model, "blocks", []):
        fully_shard(block)
    fully_shard(model)
    return model


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of `tensor` on the device of `parameter`, split like `parameter` if FSDP2 split it."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or tensor.shape != parameter.shape:  # every process has scalars, like AdamW's step count, whole
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(parameter.device), mesh, parameter.placements)  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 split; any other tensor unchanged. Every process must call it."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def without_averaging(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """A context without averaging of gradients, for all but the `last` of several accumulated passes."""
    no_sync = getattr(model, "no_sync", None)
    return nullcontext() if last or no_sync is None else no_sync()
