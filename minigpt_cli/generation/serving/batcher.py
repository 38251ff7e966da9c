"""One engine in its own thread: the server's requests join the batch between two steps and leave it when they end.

Only the thread uses the engine. After each step it gives the event loop the new tokens of all requests.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.generation.engine import Engine, GenerationRequest, Step
from minigpt_cli.storage.atomic_io import one_line


class Busy(MiniGPTError):
    """More work is waiting than may wait."""


class Ticket:
    """A request in flight, and the steps that its reader has not taken yet."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.left = request.num_samples  # samples not finished
        self.number: int | None = None  # in the engine, once it is there
        self._arrived: asyncio.Queue[list[Step] | MiniGPTError] = asyncio.Queue()

    def put(self, steps: list[Step] | MiniGPTError) -> None:
        """Called in the event loop."""
        self._arrived.put_nowait(steps)

    async def steps(self) -> AsyncIterator[list[Step]]:
        """All steps in order, as many at a time as have arrived. Raises the error that ended them early."""
        left = self.request.num_samples
        while left:
            steps = await self._arrived.get()
            if isinstance(steps, MiniGPTError):
                raise steps
            while not self._arrived.empty():  # a slow reader gets several steps at once
                more = self._arrived.get_nowait()
                if isinstance(more, MiniGPTError):
                    raise more
                steps = steps + more
            left -= sum(step.stop_reason is not None for step in steps)
            yield steps


class Batcher:
    """Decodes for any number of requests at once, of which at most `max_waiting` sequences wait for a slot."""

    def __init__(self, engine: Engine, max_waiting: int) -> None:
        self._engine = engine
        self._limit = engine.decoder.slots + max_waiting
        self._lock = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._tickets: dict[int, Ticket] = {}
        self._sequences = 0  # submitted and not finished
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="minigpt-decoding", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Sequences decoded or waiting."""
        return self._sequences

    @property
    def slots(self) -> int:
        return self._engine.decoder.slots

    def submit(self, request: GenerationRequest) -> Ticket:
        """Add a request. Raises Busy if too many sequences are waiting."""
        ticket = Ticket(request)
        with self._lock:
            if self._closing or self._sequences + request.num_samples > self._limit:
                raise Busy(f"{self._sequences} sequences are being written or waiting: try again in a moment")
            self._sequences += request.num_samples
            self._inbox.append(lambda: self._start(ticket))
            self._lock.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop a request whose client has left; its slots are free at the next step."""
        with self._lock:
            self._inbox.append(lambda: self._drop(ticket))
            self._lock.notify()

    def close(self) -> None:
        """End the thread and every request."""
        with self._lock:
            self._closing = True
            self._lock.notify()

    # ---- in the thread

    def _start(self, ticket: Ticket) -> None:
        try:
            ticket.number = self._engine.submit(ticket.request)
        except MiniGPTError as error:
            self._sequences -= ticket.left
            ticket.left = 0
            self._loop.call_soon_threadsafe(ticket.put, error)
            return
        self._tickets[ticket.number] = ticket

    def _drop(self, ticket: Ticket) -> None:
        if ticket.number is not None and self._tickets.pop(ticket.number, None) is not None:
            self._engine.cancel(ticket.number)
            self._sequences -= ticket.left
            ticket.left = 0

    def _work(self) -> None:
        while True:
            with self._lock:
                while not (self._inbox or self._engine.busy or self._closing):
                    self._lock.wait()
                if self._closing:
                    break
                while self._inbox:
                    self._inbox.popleft()()
            try:
                self._hand_out(self._engine.step())
            except Exception as error:  # no client may wait for ever, and later requests may still work
                self._fail_all(MiniGPTError(f"decoding failed: {one_line(str(error) or type(error).__name__)}"))
        self._fail_all(MiniGPTError("the server is shutting down"))

    def _fail_all(self, error: MiniGPTError) -> None:
        """End every request in flight with `error`."""
        for ticket in list(self._tickets.values()):
            with self._lock:
                self._drop(ticket)
            self._tell(partial(ticket.put, error))

    def _hand_out(self, steps: list[Step]) -> None:
        by_ticket: dict[int, list[Step]] = {}
        for step in steps:
            by_ticket.setdefault(step.request, []).append(step)
        if not by_ticket:
            return
        deliveries = [(self._tickets[number], group) for number, group in by_ticket.items()]
        for ticket, group in deliveries:
            ended = sum(step.stop_reason is not None for step in group)
            ticket.left -= ended
            with self._lock:
                self._sequences -= ended
            if not ticket.left and ticket.number is not None:
                del self._tickets[ticket.number]
        self._tell(partial(_deliver, deliveries))

    def _tell(self, call: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)


def _deliver(deliveries: Sequence[tuple[Ticket, list[Step]]]) -> None:
    for ticket, steps in deliveries:
        ticket.put(steps)
