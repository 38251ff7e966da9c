"""The engine's steps for one request, as the tests want them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minigpt_cli.generation.engine import BALANCED, Engine, GenerationRequest, Step
from minigpt_cli.generation.sampling import Sampling
from minigpt_cli.generation.select_decoder import decoder_of


def generate(
    model: Any,
    ids: Sequence[int],
    *,
    sampling: Sampling = BALANCED,
    max_new_tokens: int = 256,
    token_bytes: Sequence[bytes] | None = None,
    **request: Any,
) -> Iterator[Step]:
    """The steps of continuing `ids` with a model or a decoder; `request` holds further fields of GenerationRequest."""
    asked = GenerationRequest(ids, sampling, max_new_tokens, **request)
    engine = Engine(decoder_of(model, asked.num_samples), token_bytes)
    engine.submit(asked)
    while engine.busy:
        yield from engine.step()
