"""The runs that the server knows, and those that are open: each opened once, with its batcher; the longest unused is closed first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt_cli.generation.open_run import LoadedModel
from minigpt_cli.generation.serving.batcher import Batcher, Busy
from minigpt_cli.generation.streaming import pieces_of

MAX_OPEN = 4


@dataclass(frozen=True)
class Listed:
    """A run as /v1/models tells of it."""

    name: str
    created: int  # seconds since 1970
    facts: dict[str, Any]


@dataclass
class Opened:
    """A run in memory."""

    loaded: LoadedModel
    batcher: Batcher
    version: object
    pieces: list[str]  # the vocabulary as streaming.pieces_of writes it


class Models:
    """Runs by name. `version` changes when a run is saved; it is then opened again for later requests. `prompts` are examples from
    the text of a run: as they are shown, and as the model reads them."""

    def __init__(
        self,
        list_runs: Callable[[], Sequence[Listed]],
        open_run: Callable[[str], LoadedModel],
        version: Callable[[str], object],
        *,
        slots: int,
        max_waiting: int,
        prompts: Callable[[str], Sequence[tuple[str, str]]] = lambda _: (),
    ) -> None:
        self.list_runs, self.prompts = list_runs, prompts
        self._open_run, self._version = open_run, version
        self._slots, self._max_waiting = slots, max_waiting
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._opening = asyncio.Lock()

    async def get(self, name: str) -> Opened:
        """The run called `name`, opened if necessary. Raises RunNotFound, RunDamaged, Busy."""
        async with self._opening:  # one at a time, because it needs memory and a core
            version = await asyncio.to_thread(self._version, name)
            known = self._opened.get(name)
            if known is None or (known.version != version and not known.batcher.load):
                self._make_room(name)
                loaded = await asyncio.to_thread(self._open_run, name)
                batcher = Batcher(await asyncio.to_thread(loaded.new_engine, self._slots), self._max_waiting)
                known = self._opened[name] = Opened(loaded, batcher, version, pieces_of(loaded.token_bytes))
            self._opened.move_to_end(name)
            return known

    def _make_room(self, name: str) -> None:
        if name in self._opened:
            self._opened.pop(name).batcher.close()
        while len(self._opened) >= MAX_OPEN:
            idle = next((n for n, o in self._opened.items() if not o.batcher.load), None)
            if idle is None:
                raise Busy(f"{len(self._opened)} runs are being used: try again in a moment")
            self._opened.pop(idle).batcher.close()

    @property
    def load(self) -> int:
        """Sequences decoded or waiting, of all runs."""
        return sum(opened.batcher.load for opened in self._opened.values())

    def close(self) -> None:
        """End every batcher."""
        for opened in self._opened.values():
            opened.batcher.close()
        self._opened.clear()
