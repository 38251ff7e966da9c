"""What attention heads look at, which experts serve which characters, and whether a random string is copied.

A head's share of a role is the mean, over the tokens that have such a key among those they see, of the weight that they give to such
keys. Even attention to all of the past would give `even`. A role is named only where a head does this clearly.
Induction, looking at what followed the same token before, is measured on random strings that are repeated, as in Olsson et al. 2022:
in a text a head may look at the same places for another reason.
B windows, T tokens, H heads, E experts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt_cli.evaluation.part_costs import Advance, batches
from minigpt_cli.evaluation.sample import OTHER, Floats, Ints, Sample
from minigpt_cli.models.plain import Values, opened
from minigpt_cli.tokenization.contract import END_OF_TEXT

SHARE, TIMES_EVEN = 0.3, 2.0  # a role is named from this share on, and this many times what even attention would give
_LONGEST = 512  # tokens of a window that is read with all its attention weights
_COPY_ROWS, _COPY_TOKENS = 32, 64


Attended = dict[str, dict[str, tuple[float, float]]]
"""By head "L.H" and role: the share of its attention, and that of even attention."""


@dataclass
class Watched:
    """What was seen while the sample was read."""

    means: Values  # as models.plain.mean_values
    attends: Attended
    experts: list[Floats] = field(default_factory=list)  # by layer: tokens of each kind that each expert served, (kinds, E)


class _Shares:
    """Adds up how much of each head's attention goes to the keys of each role."""

    def __init__(self, n_layer: int) -> None:
        self.n_layer = n_layer
        self.heads: defaultdict[tuple[int, str], Any] = defaultdict(float)
        self.queries: defaultdict[str, Any] = defaultdict(float)  # how many have such a key, and what even attention gives them

    def add(self, values: Values, role: str, keys: Tensor) -> None:
        """Add a batch's weights to `keys` (B, T, T), those of the role."""
        has = keys.any(-1)  # (B, T)
        even = (keys.sum(-1) / torch.arange(1, keys.size(-1) + 1))[has].sum()
        self.queries[role] += torch.tensor([float(has.sum()), float(even)], dtype=torch.float64)
        for layer in range(self.n_layer):
            self.heads[layer, role] += torch.einsum("bhts,bts->h", values[f"{layer}.weights"], keys.float()).double()

    def attended(self) -> Attended:
        """The means; roles without any key are left out."""
        found: Attended = defaultdict(dict)
        for (layer, role), share in self.heads.items():
            total, even = self.queries[role].tolist()
            for head, each in enumerate(share.tolist() if total else ()):
                found[f"{layer}.{head}"][role] = (each / total, even / total)
        return dict(found)


def roles_of(attends: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The roles that a head clearly has, and its share of each, the largest first."""
    found = {role: share for role, (share, even) in attends.items() if share >= SHARE and share >= TIMES_EVEN * even}
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def role_keys(ids: Tensor, spaces: Tensor, line_breaks: Tensor, causal: bool = True) -> dict[str, Tensor]:
    """For each role the keys (B, T, T) that it is about, for ids (B, T); spaces and line_breaks (B, T) say which tokens are. Without a
    mask (`causal` False) there is one more: the next token, which is the answer."""
    T = ids.size(1)
    seen = torch.ones(T, T, dtype=torch.bool).tril()  # (query, key)
    seen[0] = False  # the first token sees itself alone, which says nothing
    same = ids[:, :, None] == ids[:, None, :]  # (B, T, T)
    diagonal = torch.eye(T, dtype=torch.bool)

    def back(n: int) -> Tensor:
        return torch.ones(T, T, dtype=torch.bool).tril(-n).triu(-n)  # the token n before each query

    keys = {
        "itself": diagonal,
        "previous": back(1),
        "one before previous": back(2),
        "same earlier": same & ~diagonal,
        "space": spaces[:, None, :],
        "line start": line_breaks[:, None, :],
        "first": torch.zeros(T, T, dtype=torch.bool).index_fill(1, torch.tensor([0]), True),
    }
    found = {role: (each & seen).expand(len(ids), T, T) for role, each in keys.items()}
    return found if causal else found | {"next": back(-1).expand(len(ids), T, T)}


def watch_sample(model: Any, sample: Sample, pieces: list[bytes], advance: Advance) -> Watched:
    """Read the sample once and keep means, roles and experts."""
    causal = "mask" not in getattr(model.config, "parts", ())
    is_space = torch.tensor([piece.isspace() and b"\n" not in piece for piece in pieces])
    is_break = torch.tensor([b"\n" in piece or piece == END_OF_TEXT.encode() for piece in pieces])
    kinds = np.concatenate([[OTHER], sample.token_kinds()])
    window = min(sample.window, _LONGEST)
    n = (len(sample.stream) - 1) // window * window
    rows, kinds = sample.stream[:n].reshape(-1, window), kinds[:n].reshape(-1, window)
    means: defaultdict[str, Any] = defaultdict(float)
    shares = _Shares(model.config.n_layer)
    experts: dict[int, Floats] = {}
    with torch.inference_mode():
        for place, ids in batches(rows, max(model.vocab_size, model.config.n_layer * model.config.n_head * window)):
            values: Values = {}
            with opened(model, watch=values):
                model(ids)
            for name, value in values.items():
                if name.endswith("_out"):
                    means[name] += value.sum((0, 1)) / n
            for role, keys in role_keys(ids, is_space[ids], is_break[ids], causal).items():
                shares.add(values, role, keys)
            for layer in range(model.config.n_layer):
                if (router := values.get(f"{layer}.router")) is not None:
                    counts = _served(router, model.blocks[layer].moe.balance_bias, model.config.moe_top_k, kinds[place])
                    experts[layer] = experts.get(layer, 0.0) + counts
            advance(ids.numel())
    return Watched(dict(means), shares.attended(), [experts[layer] for layer in sorted(experts)])


def _served(router: Tensor, bias: Tensor, top_k: int, kinds: Ints) -> Floats:
    """How many tokens of each kind each expert served, (kinds + 1, E), from the router's probabilities (B * T, E)."""
    chosen = (router + bias).topk(top_k, dim=-1).indices.numpy()  # (B * T, k)
    counts = np.zeros((OTHER + 1, router.size(1)))
    np.add.at(counts, (kinds.reshape(-1, 1), chosen), 1)
    return counts


@dataclass
class Copies:
    """How random strings are read when they are repeated right after."""

    first: float  # nats per token of the strings
    second: float  # and of the same strings when they follow
    attends: Attended  # the role "induction" of each head


def read_copies(model: Any, sample: Sample) -> Copies | None:
    """How the model reads random strings of the sample's tokens, each twice; None where its window is too short for that."""
    half = min(sample.window, _COPY_TOKENS) // 2
    if half < 4:
        return None
    rng = np.random.default_rng(0)
    once = rng.choice(sample.stream[1:][sample.is_text], (_COPY_ROWS, half))
    ids = torch.from_numpy(np.concatenate([once, once], axis=1))
    values: Values = {}
    with torch.inference_mode(), opened(model, watch=values):
        logits = model(ids).logits[:, :-1].float()
    nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(_COPY_ROWS, -1)
    after_same = torch.zeros(_COPY_ROWS, 2 * half, 2 * half, dtype=torch.bool)
    after_same[:, half:, 1:] = ids[:, half:, None] == ids[:, None, :-1]  # what followed each query of the second copy before
    after_same = after_same.tril(-1)
    shares = _Shares(model.config.n_layer)
    shares.add(values, "induction", after_same)
    return Copies(float(nats[:, : half - 1].mean()), float(nats[:, half:].mean()), shares.attended())
