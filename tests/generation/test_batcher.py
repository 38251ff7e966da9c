"""The thread that decodes for everybody outlives what goes wrong in it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.generation.engine import Engine, GenerationRequest
from minigpt_cli.generation.select_decoder import decoder_of
from minigpt_cli.generation.serving.batcher import Batcher, Ticket

from .test_decoders import make


async def n_steps(ticket: Ticket) -> int:
    return sum([len(steps) async for steps in ticket.steps()])


def test_an_error_while_decoding_ends_the_requests_in_flight_and_no_others() -> None:
    engine = Engine(decoder_of(make("modern"), 2, "torch"), [bytes([65 + i]) for i in range(11)])
    step = engine.step

    def broken() -> Any:
        engine.step = step  # type: ignore[method-assign]
        raise MemoryError

    async def serve() -> None:
        batcher = Batcher(engine, max_waiting=2)
        engine.step = broken  # type: ignore[method-assign]
        with pytest.raises(MiniGPTError, match="decoding failed: MemoryError"):
            await asyncio.wait_for(n_steps(batcher.submit(GenerationRequest([1], max_new_tokens=3))), 20)
        assert batcher.load == 0
        assert await asyncio.wait_for(n_steps(batcher.submit(GenerationRequest([1], max_new_tokens=3))), 20) == 3
        batcher.close()

    asyncio.run(serve())
