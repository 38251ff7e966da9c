"""From logits to the next token, in small functions that compose. NumPy alone.

The order is fixed, and the same as Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p. The remaining tokens
are normalised, and one is drawn by inverting their cumulative distribution at one uniform number. So a draw depends on its
logits and its sequence's generator alone, not on the rest of the batch.
Sources: top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024), repetition penalty (Keskar et al. 2019).
Shapes: R rows (sequences), V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.errors import MiniGPTError, UsageError, unknown_name

Logits = npt.NDArray[np.float64]
MOST_PENALTY = 1e9  # and its inverse the least: no logit overflows


class NotFinite(MiniGPTError):
    """Logits that no token can be chosen from."""

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite: its weights are too large or damaged; use another checkpoint or run")


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise UsageError(message)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UsageError for a value out of range."""

    temperature: float = 0.9  # 0: always the most probable token
    top_k: int = 50  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check(math.isfinite(self.temperature) and self.temperature >= 0, f"--temperature {self.temperature:g} must be a number from 0 up")
        _check(self.top_k >= 0, f"--top-k {self.top_k} must be 0 (all tokens) or more")
        _check(0 < self.top_p <= 1, f"--top-p {self.top_p:g} must be above 0 and at most 1")
        _check(0 <= self.min_p <= 1, f"--min-p {self.min_p:g} must be between 0 and 1")
        ok = 1 / MOST_PENALTY <= self.repetition_penalty <= MOST_PENALTY
        limits = f"between {1 / MOST_PENALTY:g} and {MOST_PENALTY:g}"
        _check(ok, f"--repetition-penalty {self.repetition_penalty:g} must be above 0 (1: none), {limits}")


STYLES = {
    "conservative": Sampling(temperature=0.5, top_k=10),
    "default": Sampling(),
    "creative": Sampling(temperature=1.2, top_k=100),
}


def style(name: str) -> Sampling:
    """The style of this name; `balanced` is another name of the default. Raises UsageError for an unknown one."""
    name = "default" if name == "balanced" else name
    if name not in STYLES:
        raise unknown_name("style", name, STYLES)
    return STYLES[name]


def with_setting(sampling: Sampling, name: str, text: str) -> Sampling:
    """`sampling` with the field `name` (dashes or underscores) set from `text`. Raises UsageError for a bad name or value."""
    types: dict[str, Any] = {field.name: type(field.default) for field in fields(Sampling)}
    key = name.strip().lstrip("-").replace("-", "_")
    if key not in types:
        raise unknown_name("sampling setting", name, types)
    try:
        value = types[key](text)
    except ValueError:
        raise UsageError(f"{name}={text!r} is not {'a whole number' if types[key] is int else 'a number'}") from None
    return Sampling(**{**{field.name: getattr(sampling, field.name) for field in fields(Sampling)}, key: value})


def penalise_repetition(logits: Logits, seen: npt.NDArray[np.bool_], penalty: float) -> Logits:
    """Logits of tokens marked in `seen` (R, V) divided by `penalty` where positive, multiplied where negative."""
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Logits, k: int) -> Logits:
    """-inf for every token whose logit is below the k-th largest of its row."""
    V = logits.shape[-1]
    if k <= 0 or k >= V:
        return logits
    threshold = np.partition(logits, V - k, axis=-1)[..., V - k, None]
    return np.where(logits >= threshold, logits, -np.inf)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """-inf outside the smallest set of most probable tokens whose probabilities add up to at least p."""
    if p >= 1:
        return logits
    order = np.argsort(-logits, axis=-1, kind="stable")
    sorted_p = np.take_along_axis(probabilities(logits), order, axis=-1)
    before = np.cumsum(sorted_p, axis=-1) - sorted_p  # mass of the tokens ahead of each
    keep = np.empty(logits.shape, dtype=bool)
    np.put_along_axis(keep, order, before < p, axis=-1)
    return np.where(keep, logits, -np.inf)


def keep_min_p(logits: Logits, p: float) -> Logits:
    """-inf for tokens less probable than p times the most probable one of their row."""
    if p <= 0:
        return logits
    return np.where(logits >= logits.max(axis=-1, keepdims=True) + math.log(p), logits, -np.inf)


def filtered(logits: Logits, sampling: Sampling, seen: npt.NDArray[np.bool_] | None = None) -> Logits:
    """Every setting of `sampling` applied to logits (R, V) in the documented order; temperature 0 leaves the scale as it is."""
    if sampling.repetition_penalty != 1 and seen is not None:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature not in (0, 1):
        # The largest logit is made 0 first, so that a division by a tiny temperature does not overflow.
        with np.errstate(over="ignore"):  # others may become minus infinity
            logits = (logits - logits.max(axis=-1, keepdims=True)) / sampling.temperature
    logits = keep_top_k(logits, sampling.top_k)
    logits = keep_top_p(logits, sampling.top_p)
    return keep_min_p(logits, sampling.min_p)


def probabilities(logits: Logits) -> Logits:
    """Softmax over the last dimension."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def draw(logits: Logits, uniforms: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Ids (R,): in each row the first token at which the cumulative probability exceeds its number in [0, 1); and the distance (R,), in
    probability, to another choice."""
    cumulative = np.exp(logits - logits.max(axis=-1, keepdims=True)).cumsum(axis=-1)  # (R, V), up to the row's total
    total = cumulative[:, -1]
    # A product that rounds up to the total itself would name no token.
    targets = np.minimum(uniforms * total, np.nextafter(total, 0.0))
    away = cumulative - targets[:, None]
    return (away <= 0).sum(axis=-1), np.abs(away[:, :-1]).min(axis=-1, initial=np.inf) / total


def choose(
    logits: npt.NDArray[Any], sampling: Sampling, uniforms: npt.NDArray[np.float64], seen: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The next token of each row of logits (R, V), given one uniform number (R,) each, which greedy choice ignores; and its margin (R,),
    a difference of probabilities, or of logits if greedy. Raises NotFinite for logits that are not numbers."""
    if not np.isfinite(logits).all():
        raise NotFinite
    if sampling.temperature == 0:
        if sampling.repetition_penalty != 1 and seen is not None:
            logits = penalise_repetition(logits.astype(np.float64), seen, sampling.repetition_penalty)
        ids = logits.argmax(axis=-1)
        if logits.shape[-1] == 1:
            return ids, np.full(len(ids), np.inf)
        two = np.partition(logits, -2, axis=-1)[:, -2:]
        return ids, two[:, 1] - two[:, 0]
    return draw(filtered(logits.astype(np.float64), sampling, seen), uniforms)


def nats(logits: npt.NDArray[Any], ids: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Nats (R,) of the chosen tokens under the model itself, before any setting: the unit of every loss here. Raises NotFinite."""
    if not np.isfinite(logits).all():
        raise NotFinite
    logits = logits.astype(np.float64)
    top = logits.max(axis=-1)
    chosen = logits[np.arange(len(ids)), ids]
    return np.log(np.exp(logits - top[:, None]).sum(axis=-1)) + top - chosen  # type: ignore[no-any-return]
