"""The first weights of tokens that a vocabulary is extended by.

Their rows begin at the mean of the old ones with a little noise, so that no two are the same. In the output head the mean is not enough:
it gives a new token about the mean logit, and ten of them would take 0.005 nats per character from the old text (measured on models of
Tiny Shakespeare). There is no bias that could say "improbable", so the row itself must: its product with every final state h of the model
has to be far below that state's log-sum-exp of old logits. This is a convex problem, solved here by Newton's method on states that the
model passes through while it writes: 0.3 of its tokens are random, since the rare states are those where a fitted row fails. Measured on
other text, the old score then changes by 6e-6 to 3e-5 nats for ten new tokens, up to 1e-4 for a hundred and up to 7e-4 for a thousand,
tied head or not. The price is paid in the first steps: a new text with twelve new characters is learned 0.1 nats behind rows that begin
at the mean after 60 steps, and 0.04 behind after 180.

Shapes: N states, C channels, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minigpt_cli.models.contract import build_model
from minigpt_cli.models.transformer import Transformer

_NOISE = 0.01  # of the standard deviation of the old rows
_NEW_STREAM = 0x0E57  # gives the noise other random numbers than the weights
_TAKEN = 1e-5  # nats per token that all new tokens together may take from the old ones
_STATES, _LONGEST = 1 << 14, 128  # states that a row is fitted to; tokens of the windows that they come from
_RANDOM = 0.3  # share of random tokens in these windows
_STEPS = 100  # of Newton's method; ten to twenty are usual


def begin_new_rows(weights: Mapping[str, Tensor], config: Any, rows: Tensor, seed: int, *, extended: bool) -> float:
    """Change the rows of new tokens in `weights`, which are means of old ones, in place. `rows` (V,): the old id of each token, -1 for a
    new one. With `extended` all old tokens are among them, and the new ones begin improbable: returns what they then take, in nats per
    token of text that the model writes."""
    new, old = rows < 0, rows >= 0
    if "table" in weights:
        return _begin_table(weights["table"], new) if extended else 0.0
    generator = torch.Generator().manual_seed(seed ^ _NEW_STREAM)
    for weight in (weights[name] for name in ("token_embedding.weight", "head.weight") if name in weights):
        noise = torch.empty_like(weight).normal_(0, _NOISE, generator=generator) * weight[old].std(correction=0)
        weight[new] += noise[new]
    model = build_model(config, len(rows)).eval()
    if not extended or not isinstance(model, Transformer):
        return 0.0
    model.load_state_dict(weights)
    states, log_sums = _states(model, old.nonzero()[:, 0], generator)
    head = weights["token_embedding.weight" if model.head is None else "head.weight"]
    mean = head[old].double().mean(0)
    row, taken = improbable_row(states, log_sums - math.log(int(new.sum())), mean)
    head[new] += (row - mean).to(head.dtype)
    return taken


def _begin_table(table: Tensor, new: Tensor) -> float:
    """The bigram's logits of new tokens, each so far below its row that together they take _TAKEN."""
    log_sums = table[:, ~new].logsumexp(1, keepdim=True)
    table[:, new] = log_sums + math.log(_TAKEN / int(new.sum()))
    return _TAKEN


@torch.no_grad()
def _states(model: Transformer, old: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Final states (N, C) of the model while it writes old tokens, and the log-sum-exp of their logits (N,)."""
    length = min(model.config.block_size, _LONGEST)
    n_windows = max(_STATES, 32 * model.config.n_embd) // length
    states: list[Tensor] = []
    log_sums: list[Tensor] = []
    cache = model.new_cache(n_windows, length)
    ids = _random(old, n_windows, generator)
    hook = model.final_norm.register_forward_hook(lambda module, arguments, output: states.append(output[:, -1]))
    try:
        for _ in range(length):
            logits = model(ids, cache).logits[:, -1, old].float()
            log_sums.append(logits.logsumexp(-1))
            written = old[torch.multinomial(logits.softmax(-1), 1, generator=generator)]  # (windows, 1)
            is_random = torch.rand(ids.shape, generator=generator) < _RANDOM
            ids = torch.where(is_random, _random(old, n_windows, generator), written)
    finally:
        hook.remove()
    return torch.cat(states).double(), torch.cat(log_sums).double()


def _random(old: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return old[torch.randint(len(old), (n, 1), generator=generator)]


def improbable_row(states: Tensor, log_sums: Tensor, start: Tensor) -> tuple[Tensor, float]:
    """A row (C,) near `start` whose logits on `states` (N, C) are, in the mean of their exponentials, _TAKEN of those whose `log_sums`
    (N,) are given; and the share that it reaches."""
    row = start
    spread = states.T @ states / len(states)  # keeps each step small where few states say anything
    spread += 1e-2 * spread.diagonal().mean() * torch.eye(len(start), dtype=spread.dtype)
    for _ in range(_STEPS):
        below = states @ row - log_sums
        taken = below.exp().mean().item()
        if taken < _TAKEN:
            break
        share = below.softmax(0)  # (N,) of each state in what is taken
        gradient = states.T @ share
        curvature = (states * share[:, None]).T @ states - torch.outer(gradient, gradient)
        step = torch.linalg.solve(curvature + 0.1 * spread, gradient)
        row = row - step * min(1.0, 3 / (states @ step).abs().max().item())
    return row, taken
