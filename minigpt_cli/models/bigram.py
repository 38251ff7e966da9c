"""Bigram: the next token depends on the current one alone, through a table of logits. The simplest model: it has no context.

Its best loss is the conditional entropy of the text's token pairs; a model with context must be better (Shannon 1948).
Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_cli.config import BigramConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.models.contract import MatrixParts, Output

MAX_VOCAB = 1 << 15  # a table of 4 GiB


class Bigram(nn.Module):
    """Row i of `table` holds the logits of the token after token i."""

    compute_dtype = torch.float32

    def __init__(self, config: BigramConfig, vocab_size: int) -> None:
        super().__init__()
        if vocab_size > MAX_VOCAB:
            raise UsageError(f"a bigram table for {vocab_size} tokens is too large: use at most {MAX_VOCAB} tokens, or --arch modern")
        self.config = config
        self.vocab_size = vocab_size
        self.table = nn.Parameter(torch.empty(vocab_size, vocab_size))

    def forward(self, ids: Tensor, cache: None = None) -> Output:
        logits = F.embedding(ids, self.table)  # (B, T, V)
        return Output(logits, logits.new_zeros(()))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        self.table.normal_(0.0, 0.02, generator=generator)

    def new_cache(self, batch_size: int, max_tokens: int) -> None:
        """None: the logits depend on the last token alone."""

    def matrices(self) -> Iterator[MatrixParts]:
        yield from ()

    def n_active_params(self) -> int:
        return self.table.numel()
