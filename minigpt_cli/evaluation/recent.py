"""What followed similar states among the last tokens is expected again: a continuous cache (Grave et al. 2017, "Improving Neural Language
Models with a Continuous Cache").

A model forgets what lies before its window, and a text repeats its names and words. Nothing is trained for it: how much the recent tokens
count, and how similar a state must be, is weighed at each token by how well each choice would have predicted the tokens so far. So a score
depends only on earlier tokens, and there is nothing to fit to the scored text.
T tokens, C channels, N remembered tokens, K choices.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)  # of the probability that goes to the recent tokens
_SHARPNESS = (0.1, 0.3, 1.0)  # of the weights by similarity
_ROWS = 256  # tokens that are compared with the recent ones at once


class RecentTokens:
    """The last tokens of a text that is read from its beginning."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._states = torch.empty(0)  # (N, C)
        self._followed = torch.empty(0, dtype=torch.int64)  # (N,) the token after each state
        self._log_weights = torch.zeros(len(_SHARES) * len(_SHARPNESS), dtype=torch.float64)  # (K,)

    def nats(self, states: Tensor, nats: Tensor, targets: Tensor) -> Tensor:
        """(T,) nats of `targets` (T,), which cost the model `nats` (T,) in `states` (T, C), with the recent tokens; remembers them."""
        rows = (torch.split(t.cpu(), _ROWS) for t in (states.float(), nats.double(), targets))
        return torch.cat([self._rows(*part) for part in zip(*rows, strict=True)]).to(nats.device)

    def _rows(self, states: Tensor, nats: Tensor, targets: Tensor) -> Tensor:
        T, N = len(states), len(self._followed)
        keys = torch.cat([self._states, states]) if N else states  # (N + T, C)
        followed = torch.cat([self._followed, targets])
        age = torch.arange(N, N + T)[:, None] - torch.arange(N + T)  # (T, N + T)
        known = (age > 0) & (age <= self._limit)
        similarity = (states @ keys.mT).masked_fill(~known, -torch.inf)
        same = followed == targets[:, None]
        again = torch.stack([(torch.softmax(s * similarity, 1).nan_to_num(0.0) * same).sum(1) for s in _SHARPNESS], 1).double()
        shares = torch.tensor(_SHARES, dtype=torch.float64)[:, None]
        mixed = (1 - shares) * torch.exp(-nats)[:, None, None] + shares * again[:, None, :]  # (T, shares, sharpness)
        choices = mixed.log().flatten(1)  # (T, K)
        so_far = self._log_weights + choices.cumsum(0)
        before = torch.cat([self._log_weights[None], so_far[:-1]])
        self._states, self._followed, self._log_weights = keys[-self._limit :], followed[-self._limit :], so_far[-1]
        return torch.logsumexp(before, 1) - torch.logsumexp(so_far, 1)
