"""A decoder in NumPy alone: starts in a fifth of the time that torch needs to be imported, and for small models outruns it.

At one row a small model's matrices are quickly multiplied; what costs is the number of calls. A NumPy call on a small array
takes a third of a microsecond, a torch operator several. Buffers are allocated once per number of rows; every product and
most of what is between goes into one of them.
Shapes: R rows, T tokens, N tokens seen, C channels, H query heads, K key/value heads, G = H // K, D head size, F hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.generation.activations import ACTIVATIONS, silu
from minigpt_cli.generation.decoders.contract import Logits
from minigpt_cli.generation.decoders.plan import Array, Layer, Plan
from minigpt_cli.generation.sampling import choose

CHUNK = 256  # rows of a prefill that are computed at once
_WITHOUT_WARNINGS = np.errstate(over="ignore", invalid="ignore", divide="ignore")  # logits are looked at before a token is chosen


class BigramDecoder:
    """A row of the table."""

    name = "table"
    endless = True
    greedy_slack = draw_slack = 0.0
    choose = staticmethod(choose)

    def __init__(self, plan: Plan, slots: int = 1) -> None:
        self.vocab_size, self.window, self.slots = plan.vocab_size, plan.block_size, slots
        self._table = plan.embedding

    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        row: Logits = self._table[ids[-1]]
        return row

    def exact(self, ids: Sequence[int]) -> Logits:
        row: Logits = self._table[ids[-1]]
        return row

    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        rows: Logits = self._table[np.asarray(ids)]
        return rows

    def copy(self, source: int, target: int, length: int) -> None: ...


@dataclass(frozen=True)
class _Matrices:
    """A layer's matrices as (inputs, outputs), the way BLAS likes them for few rows."""

    qkv: Array
    out: Array
    up: list[Array]
    down: list[Array]


class NumpyDecoder:
    """Transformer of any plan. Keys are kept (slots, K, D, window) and values (slots, K, window, D), as rings of `window` tokens."""

    name = "numpy"
    greedy_slack = 1e-5
    draw_slack = 2e-5
    choose = staticmethod(choose)

    def __init__(self, plan: Plan, slots: int = 1) -> None:
        self.plan = plan
        self.vocab_size, self.window, self.slots = plan.vocab_size, plan.block_size, slots
        self.endless = plan.rope_theta > 0
        K, D, W = plan.n_kv_head, plan.head_size, plan.block_size
        # One slot more than asked for: `exact` computes in the last.
        self._keys = [np.empty((slots + 1, K, D, W), np.float32) for _ in plan.layers]
        self._values = [np.empty((slots + 1, K, W, D), np.float32) for _ in plan.layers]
        self._weights = [
            _Matrices(_t(layer.qkv), _t(layer.out), [_t(m) for m in layer.up], [_t(m) for m in layer.down]) for layer in plan.layers
        ]
        self._head = _t(plan.head)
        self._activation = ACTIVATIONS.get(plan.activation)
        self._buffers: dict[int, dict[str, Array]] = {}
        self._frequencies = plan.rope_theta ** (-np.arange(0, D, 2) / D) if self.endless else None

    @_WITHOUT_WARNINGS
    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        logits: Logits = np.empty((0, self.vocab_size), np.float32)
        for at in range(0, len(ids), CHUNK):
            part = np.asarray(ids[at : at + CHUNK])
            where = slice(start + at, start + at + len(part))
            x = self._embed(part, np.arange(where.start, where.stop))
            mask = np.triu(np.full((len(part), where.stop), -np.inf, np.float32), where.start + 1)  # (T, N)
            for number in range(len(self.plan.layers)):
                self._layer(number, x, lambda i, q, k, v, y, s=slot, w=where, m=mask: self._attend_chunk(i, q, k, v, y, s, w, m))
            logits = self._logits(x[-1:])
        last: Logits = logits[0]
        return last

    def exact(self, ids: Sequence[int]) -> Logits:
        return self.extend(self.slots, ids, 0)

    @_WITHOUT_WARNINGS
    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        x = self._embed(np.asarray(ids), np.asarray(positions))
        same = len(set(positions)) == 1 and list(slots) == list(range(slots[0], slots[0] + len(slots)))
        for number in range(len(self.plan.layers)):
            if same:
                where = slice(slots[0], slots[0] + len(slots))
                self._layer(number, x, lambda i, q, k, v, y, w=where: self._attend_rows(i, q, k, v, y, w, positions[0]))
            else:
                self._layer(number, x, lambda i, q, k, v, y: self._attend_each(i, q, k, v, y, slots, positions))
        return self._logits(x)

    def copy(self, source: int, target: int, length: int) -> None:
        if source != target:
            n = min(length, self.window)
            for keys, values in zip(self._keys, self._values, strict=True):
                keys[target, :, :, :n] = keys[source, :, :, :n]
                values[target, :, :n] = values[source, :, :n]

    # ---- parts of a step

    def _buffer(self, rows: int) -> dict[str, Array]:
        if rows not in self._buffers:
            p = self.plan
            widths = {"x": p.n_embd, "h": p.n_embd, "y": p.n_embd, "z": p.n_embd, "logits": p.vocab_size}
            widths |= {"qkv": (p.n_head + 2 * p.n_kv_head) * p.head_size, "rot": (p.n_head + p.n_kv_head) * p.head_size}
            widths |= {"up": p.layers[0].up.shape[1]}
            if len(self._buffers) > 8:
                self._buffers.clear()
            self._buffers[rows] = {name: np.empty((rows, width), np.float32) for name, width in widths.items()}
        return self._buffers[rows]

    def _embed(self, ids: npt.NDArray[Any], positions: npt.NDArray[Any]) -> Array:
        x = self._buffer(len(ids))["x"]
        np.take(self.plan.embedding, ids, axis=0, out=x)
        if self.plan.positions is not None:
            x += self.plan.positions[positions]
        elif self._frequencies is not None:
            angles = positions[:, None] * self._frequencies  # (R, D / 2), float64: exact however far the text goes
            cos, sin = np.cos(angles), np.sin(angles)
            self._cos = np.concatenate((cos, cos), 1).astype(np.float32)[:, None]  # (R, 1, D)
            self._sin = np.concatenate((-sin, sin), 1).astype(np.float32)[:, None]
        return x

    def _layer(self, number: int, x: Array, attend: Any) -> None:
        layer, w, b = self.plan.layers[number], self._weights[number], self._buffer(len(x))
        R, p = len(x), self.plan
        np.dot(_normed(x, p.norm_eps, b["h"]), w.qkv, out=b["qkv"])
        if layer.qkv_bias is not None:
            b["qkv"] += layer.qkv_bias
        heads = b["qkv"].reshape(R, -1, p.head_size)  # (R, H + 2K, D)
        qk = heads[:, : p.n_head + p.n_kv_head]
        if layer.qk_gain is not None:
            scale = np.einsum("rhd,rhd->rh", qk, qk)
            scale *= 1 / p.head_size
            scale += p.norm_eps
            qk *= (1 / np.sqrt(scale))[..., None]
            qk *= layer.qk_gain
        if self.endless:
            half, rot = p.head_size // 2, b["rot"].reshape(qk.shape)
            np.multiply(qk[..., half:], self._sin[..., :half], out=rot[..., :half])
            np.multiply(qk[..., :half], self._sin[..., half:], out=rot[..., half:])
            qk *= self._cos
            qk += rot
        q, k, v = qk[:, : p.n_head], qk[:, p.n_head :], heads[:, p.n_head + p.n_kv_head :]
        attend(number, q, k, v, b["y"].reshape(R, p.n_head, p.head_size))
        x += np.dot(b["y"], w.out, out=b["z"])
        if layer.out_bias is not None:
            x += layer.out_bias
        h = _normed(x, p.norm_eps, b["h"])
        if layer.router is None:
            x += self._feed_forward(h, w.up[0], layer.up_bias, w.down[0], b["up"], b["z"])
            if layer.down_bias is not None:
                x += layer.down_bias
        else:
            x += self._experts(h, layer, w, b)

    def _feed_forward(self, h: Array, up: Array, bias: Array | None, down: Array, hidden: Array, out: Array) -> Array:
        np.dot(h, up, out=hidden)
        if bias is not None:
            hidden += bias
        if self._activation is not None:
            return np.dot(self._activation(hidden), down, out=out)
        F = hidden.shape[1] // 2
        return np.dot(silu(hidden[:, :F]) * hidden[:, F:], down, out=out)

    def _experts(self, h: Array, layer: Layer, w: _Matrices, b: dict[str, Array]) -> Array:
        """Sum over each row's experts, a pair of products per expert in use."""
        k = self.plan.moe_top_k
        scores = h @ layer.router.T  # type: ignore[union-attr]
        probs = np.exp(scores - scores.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)  # (R, E)
        ranked = probs if layer.router_bias is None else probs + layer.router_bias
        chosen = np.argsort(-ranked, axis=1, kind="stable")[:, :k]  # (R, k)
        weights = np.take_along_axis(probs, chosen, 1)
        if self.plan.moe_norm_topk:
            weights /= weights.sum(1, keepdims=True)
        y = b["z"]
        y.fill(0)
        for expert in np.unique(chosen):
            rows, nth = np.nonzero(chosen == expert)
            part = self._feed_forward(
                h[rows], w.up[expert], None, w.down[expert], b["up"][: len(rows)], np.empty((len(rows), y.shape[1]), "f")
            )
            y[rows] += part * weights[rows, nth][:, None]
        return y

    def _logits(self, x: Array) -> Logits:
        b = self._buffer(len(x))
        logits = np.dot(_normed(x, self.plan.norm_eps, b["h"]), self._head, out=b["logits"])
        if self.plan.head_bias is not None:
            logits += self.plan.head_bias
        return logits

    # ---- attention; each writes k and v into the cache, then the mean of values into y (R, H, D)

    def _attend_rows(self, layer: int, q: Array, k: Array, v: Array, y: Array, slots: slice, position: int) -> None:
        """R slots side by side, all at the same position."""
        keys, values, at, n = self._keys[layer][slots], self._values[layer][slots], position % self.window, min(position + 1, self.window)
        keys[:, :, :, at] = k
        values[:, :, at] = v
        R, H, D = q.shape
        K = k.shape[1]
        scores = np.matmul(q.reshape(R, K, H // K, D), keys[..., :n])  # (R, K, G, N)
        np.matmul(_softmax(scores), values[:, :, :n], out=y.reshape(R, K, H // K, D))

    def _attend_each(self, layer: int, q: Array, k: Array, v: Array, y: Array, slots: Sequence[int], positions: Sequence[int]) -> None:
        """Slots anywhere, at positions of their own."""
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            one = slice(row, row + 1)
            self._attend_rows(layer, q[one], k[one], v[one], y[one], slice(slot, slot + 1), position)

    def _attend_chunk(self, layer: int, q: Array, k: Array, v: Array, y: Array, slot: int, where: slice, mask: Array) -> None:
        """T tokens of one slot, each seeing those up to itself."""
        keys, values = self._keys[layer][slot], self._values[layer][slot]
        keys[:, :, where] = k.transpose(1, 2, 0)
        values[:, where] = v.transpose(1, 0, 2)
        T, H, D = q.shape
        K, N = k.shape[1], where.stop
        grouped = q.reshape(T, K, H // K, D).transpose(1, 2, 0, 3)  # (K, G, T, D)
        scores = np.matmul(grouped, keys[:, None, :, :N]) + mask  # (K, G, T, N)
        mixed = np.matmul(_softmax(scores), values[:, None, :N])  # (K, G, T, D)
        y[...] = mixed.transpose(2, 0, 1, 3).reshape(T, H, D)


def _t(matrix: Array) -> Array:
    return np.ascontiguousarray(matrix.T)


def _normed(x: Array, eps: float, out: Array) -> Array:
    """x divided by its root mean square, row by row."""
    if len(x) == 1:
        np.multiply(x, 1 / math.sqrt(np.dot(x[0], x[0]) / x.shape[1] + eps), out=out)
        return out
    scale = np.einsum("rc,rc->r", x, x)
    scale *= 1 / x.shape[1]
    scale += eps
    np.multiply(x, (1 / np.sqrt(scale))[:, None], out=out)
    return out


def _softmax(scores: Array) -> Array:
    """Softmax over the last dimension, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
