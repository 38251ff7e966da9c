"""Work in threads beside the main one, in bounded memory: hashlib and NumPy let other threads run meanwhile."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from minigpt_cli.threads import cores

T = TypeVar("T")
R = TypeVar("R")

_TOGETHER = 1 << 17  # bytes that are hashed at once: to hand over a few costs more than to hash them
_AHEAD = 8  # such parts that may wait, so that memory is bounded


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(work, items)`, some items ahead, on every core."""
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(n := cores()) as pool:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > 2 * n:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


class BackgroundHash:
    """The SHA-256 of all that is given to `update`, computed in a thread."""

    def __init__(self, start: hashlib._Hash | None = None) -> None:
        """It goes on from `start`."""
        self._sha256 = start or hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)  # one, so that parts stay in order; it starts with the first part
        self._running: deque[Future[None]] = deque()
        self._parts: list[bytes | memoryview] = []
        self._size = 0

    def update(self, data: bytes | memoryview) -> None:
        """Add `data`, some time before the next `hexdigest`."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _TOGETHER:
            if len(self._running) == _AHEAD:
                self._running.popleft().result()
            self._running.append(self._thread.submit(self._hash, self._parts))
            self._parts, self._size = [], 0

    def _hash(self, parts: Sequence[bytes | memoryview]) -> None:
        self._sha256.update(parts[0] if len(parts) == 1 else b"".join(parts))

    def hexdigest(self) -> str:
        """The hash of what was added so far."""
        while self._running:
            self._running.popleft().result()
        self._hash(self._parts)
        self._parts, self._size = [], 0
        return self._sha256.hexdigest()
