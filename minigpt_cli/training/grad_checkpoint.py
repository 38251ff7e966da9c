"""Gradient checkpointing: keep only each block's input for the backward pass, and compute the block again there (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigpt_cli.models.layers import Dropout


class _Recomputed:
    """Mixed into a block's class: its forward pass, run again in the backward pass with the same dropout masks."""

    def forward(self: Any, *args: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if not (self.training and torch.is_grad_enabled()):
            return forward(*args)
        generator = next((m.generator for m in self.modules() if isinstance(m, Dropout)), None)
        # torch replays its default generator, which fused attention and compiled dropout use, by itself.
        replayed: dict[str, Any] = {} if generator is None else {"context_fn": _same_masks(generator)}
        return checkpoint(forward, *args, use_reentrant=False, **replayed)


def install(model: nn.Module) -> None:
    """Make every block of `model` forget its activations between the forward and the backward pass."""
    for block in getattr(model, "blocks", ()):
        block.__class__ = type(type(block).__name__, (_Recomputed, type(block)), {})


def _same_masks(generator: torch.Generator) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Contexts for a block's first and second computation: the second starts `generator` where the first did, then puts it back."""

    @contextmanager
    def replay(state: Tensor) -> Iterator[None]:
        now = generator.get_state()
        generator.set_state(state)
        try:
            yield
        finally:
            generator.set_state(now)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), replay(generator.get_state())

    return contexts
