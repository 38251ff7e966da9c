"""What every architecture promises, so that training, scoring and decoding work with all of them.

B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from minigpt_cli import registry
from minigpt_cli.errors import UsageError


class Output(NamedTuple):
    """What a forward pass returns."""

    logits: Tensor  # (B, T, V)
    aux_loss: Tensor  # scalar, already weighted; added to the training loss, zero where there is none
    states: Tensor | None = None  # (B, T, C): what the head reads, if there is such a thing


class MatrixParts(NamedTuple):
    """A weight matrix inside the blocks, which Muon orthogonalises: `weight` is `parts` matrices stacked on dim 0."""

    weight: nn.Parameter
    parts: int  # e.g. 3 for a fused q, k, v; each part is orthogonalised apart


class Model(Protocol):
    """A language model: token ids in, next-token logits out. Never sees targets, prints, or builds an optimizer."""

    config: Any  # its frozen pydantic config
    vocab_size: int
    compute_dtype: torch.dtype  # of activations and products; parameters and their gradients stay float32

    def forward(self, ids: Tensor, cache: Any = None) -> Output:
        """Logits (B, T, V) for ids (B, T); with a cache, ids are the tokens after those that it holds, and it grows by T."""

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw every weight afresh from `generator` alone."""

    def new_cache(self, batch_size: int, max_tokens: int) -> Any:
        """An empty cache for `batch_size` sequences of at most `max_tokens` tokens, or None where none is needed."""

    def matrices(self) -> Iterator[MatrixParts]:
        """The weight matrices inside the blocks, without embeddings, head, gains and routers."""

    def n_active_params(self) -> int:
        """Parameters that take part in computing one token; equals the total except for a mixture of experts."""


def build_model(config: Any, vocab_size: int, seed: int | None = None) -> nn.Module:
    """The model that `config.arch` names, on the CPU at float32; its weights drawn from `seed`, or left unset for loading."""
    if config.arch not in registry.ARCHITECTURES:
        line = f'"{config.arch}": "minigpt_cli.models.{config.arch}:Class"'
        raise UsageError(f"--arch {config.arch} is in config.py but not in registry.py: add the line {line} to ARCHITECTURES there")
    architecture = registry.load("architecture", config.arch)
    # nn.Module has a constructor and a forward of its own, which only raise.
    methods = ["__init__", *(name for name, value in vars(Model).items() if callable(value) and not name.startswith("_"))]
    _check_contract(config.arch, [name for name in methods if getattr(architecture, name, None) in (None, getattr(nn.Module, name, None))])
    model: nn.Module = architecture(config, vocab_size)
    _check_contract(config.arch, [name for name in Model.__annotations__ if not hasattr(model, name)])
    if seed is not None:
        model.init_weights(torch.Generator().manual_seed(seed))  # type: ignore[operator]
    return model


def _check_contract(arch: str, lacking: list[str]) -> None:
    if lacking:
        where = registry.ARCHITECTURES[arch]
        raise UsageError(f"{where} lacks {', '.join(lacking)}: add what Model in minigpt_cli/models/contract.py promises")


def meta_model(config: Any, vocab_size: int) -> nn.Module:
    """The model that `config.arch` names, with names and shapes but without memory for its numbers."""
    with torch.device("meta"):
        return build_model(config, vocab_size)
