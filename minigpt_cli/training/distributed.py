"""One run on several processes: who decides, how the others learn of it, how gradients are averaged.

Started by torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE; without them every function here is a cheap no-op. The first
process leads: it alone reads the command line, the clock and the folders, decides, writes and prints. The others follow: they take
part in what it announces (commands/processes.py), and it sends them whatever is decided on the way (`World.lead`).
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

_PATIENCE = timedelta(minutes=10)  # how long a process waits in a collective operation before it gives the others up
_LEAVE_S = 3.0  # how long the first process waits until the others know that it leaves
_ASK_AGAIN_S = 0.05  # while waiting for a message
GONE, FAILED = b"gone", b"failed"  # sent in place of a value: the first process has left, or did not succeed
_LOST = ("gloo", "nccl", "connection", "socket", "broken pipe", "timed out", "process group")  # in the words of a broken collective


class Cancelled(Exception):
    """In a process that follows: the first one has ended what they were doing, and has printed why."""


class PeerLost(MiniGPTError):
    """Another process of this training is gone."""


class Channel:
    """From the first process to all others: values, in order, that wait in a store until they are read."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank, self._count = store, rank, 0
        self.closed = False

    def send(self, message: bytes) -> None:
        """Put a message where the others find it."""
        self._store.set(str(self._count), message)  # type: ignore[arg-type] # bytes are taken as they are
        self._count += 1

    def close(self, size: int) -> None:
        """Say that no more will come, and wait until all know: a process that leaves while others ask it something breaks their work."""
        self.send(GONE)
        deadline = time.monotonic() + _LEAVE_S
        others = [f"heard/{rank}" for rank in range(1, size)]
        while not self._store.check(others) and time.monotonic() < deadline:
            time.sleep(_ASK_AGAIN_S)

    def receive(self) -> Any:
        """The next value, whenever it comes; signals are handled meanwhile. Raises Cancelled for a failure, or if none will come."""
        message = self._wait_for(str(self._count))
        self._count += 1
        if message == GONE:
            self.closed = True
            self._store.set(f"heard/{self._rank}", "")  # the store may be gone a moment later, so nothing is asked of it after this
        if message in (GONE, FAILED):
            raise Cancelled
        return pickle.loads(message)  # from a process of this very training

    def _wait_for(self, key: str) -> bytes:
        """What stands under `key`, as soon as something does. Asked for in a thread: over a dead network a question takes a quarter of an
        hour to fail, and no signal is handled meanwhile."""
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
                answer = answers.get(timeout=_PATIENCE.total_seconds())
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
    shared_error: MiniGPTError | None = None  # the last one that every process knows of
    broken: bool = False  # by an error that the others do not know of: nothing can be done together any more

    @property
    def leads(self) -> bool:
        """Whether this process decides, writes the run directory and speaks."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """This process's device of a kind."""
        return torch.device(kind, self.local_rank) if kind == "cuda" else torch.device(kind)

    def lead(self, action: Callable[[], T]) -> T:
        """What `action` returns in the first process, in every process. The others do not run it; they raise Cancelled if it fails.

        However long it takes, no process gives up, and a signal to a process that waits is handled.
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
        """What `action` returns, in every process its own; where it fails in one, it fails in all, and the first one says why."""
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
            message, code = next(told for told in problems if told)
            problem = UsageError(message) if code == UsageError.exit_code else MiniGPTError(message)
        self.shared_error = problem
        raise problem

    @contextmanager
    def announced(self, job: object) -> Iterator[None]:
        """In the first process: have the others take part in `job` for the length of a `with`; `announcements` gives it to them."""
        self.lead(lambda: job)
        try:
            yield
        except BaseException as error:
            self.broken = self.size > 1 and error is not self.shared_error
            raise

    def announcements(self) -> Iterator[Any]:
        """In a process that follows: what the first one announces, until that leaves."""
        while self.channel is not None and not self.channel.closed:
            with suppress(Cancelled):
                yield self.channel.receive()

    def agree(self, value: int, device: torch.device) -> int:
        """The largest `value` of any process, known to all: a signal or the clock of one reaches every one."""
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
    """Join the other processes of torchrun for the length of a `with`: gloo between CPUs, NCCL between GPUs.

    Raises PeerLost where one of them is gone.
    """
    try:
        world, channel = _join()
        says_so = world.leads
        try:
            yield world
        except RuntimeError as error:
            says_so = says_so and not _is_broken(error)  # nobody may be there to be told
            raise
        finally:
            if says_so:
                with suppress(RuntimeError):
                    channel.close(world.size)
    except RuntimeError as error:
        if not _is_broken(error):
            raise
        raise PeerLost(
            "another process of this training is gone or cannot be reached: what was saved is whole; "
            "start all of them again, with --resume RUN to go on from there"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_broken(error: RuntimeError) -> bool:
    """Whether this is how torch says that a connection is lost; it has no class of errors for that."""
    return any(word in str(error).lower() for word in _LOST)


def _join() -> tuple[World, Channel]:
    store, rank, size = next(iter(rendezvous("env://")))
    channel = Channel(PrefixStore("told", store), rank)
    together = World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), channel)
    backend = together.lead(lambda: "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if "cuda" in backend and torch.cuda.is_available():
        torch.cuda.set_device(together.local_rank)
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=_PATIENCE)
    return together, channel


def replicate(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over the processes after each backward pass (DDP)."""
    if world.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, find_unused_parameters=_is_sparse(model)
    )


def copy_from_first(model: nn.Module) -> None:
    """Give every process the weights of the first, whatever its own hardware drew."""
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)


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
