"""kernels.c, experts.c, attention.c, products.c or muon.c over odd shapes, against formulas in NumPy:
python train.py NAME LIBRARY CASES SEED. Run by sanitizers.py. Shapes as in the sources."""

from __future__ import annotations

import ctypes
import math
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

TOLERANCE = {0: 2e-4, 1: 3e-2}  # float32, bfloat16; of the largest number
Array = np.ndarray[Any, Any]


# ---- numbers


def halves(x: Array) -> Array:
    """bfloat16, as 16-bit words, of float32: to nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def floats(x: Array) -> Array:
    """float64 of either."""
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if x.dtype == np.uint16 else x.astype(np.float64)


class Numbers:
    """Random tensors in the form that a kernel reads."""

    def __init__(self, rng: np.random.Generator, bf16: int) -> None:
        self.rng, self.bf16 = rng, bf16

    def draw(self, *shape: int, scale: float = 1.0) -> Array:
        return self.tensor(self.rng.normal(size=shape) * scale)

    def tensor(self, x: Array) -> Array:
        return halves(x) if self.bf16 else x.astype(np.float32)

    def empty(self, *shape: int) -> Array:
        return np.full(shape, 0xFFFF, np.uint16) if self.bf16 else np.full(shape, np.nan, np.float32)


def near(name: str, found: Array, expected: Array, bf16: int) -> None:
    far = float(np.abs(floats(found) - expected).max(initial=0) / (1e-2 + np.abs(expected).max(initial=0)))
    if not far <= TOLERANCE[bf16]:
        raise SystemExit(f"{name} of shape {found.shape}, bf16 {bf16}, is off by {far:.2g}")


def kept(first: int, rows: int, e: int, seed: int, threshold: int) -> Array:
    """(rows, e) whether dropout keeps each: byte j of SplitMix64 of a group's eight counters, groups of 64 along each row."""
    groups = -(-e // 64)
    with np.errstate(over="ignore"):
        counters = np.arange(rows * groups * 8, dtype=np.uint64) + np.uint64(8 * first + 1)
        z = counters * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z.view(np.uint8).reshape(rows, groups * 64)[:, :e] >= threshold


def causal_softmax(scores: Array, seen: Array, begins: Array | None = None) -> Array:
    """Over the first seen[r] of each row, from begins[r] on."""
    at = np.arange(scores.shape[1])
    masked = np.where((at < seen[:, None]) & (at >= (0 if begins is None else begins[:, None])), scores, -np.inf)
    p = np.exp(masked - masked.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


# ---- calling C


class Library:
    """The functions, called with arrays as pointers; what they return must be 0 unless `refused`."""

    def __init__(self, path: str) -> None:
        self.lib = ctypes.CDLL(path)

    def __call__(self, name: str, *arguments: Any, refused: bool = False) -> None:
        function = getattr(self.lib, name)
        status = function(*(self._argument(a) for a in arguments))
        if name in CHECKED and bool(status) != refused:
            raise SystemExit(f"{name} returned {status}")

    @staticmethod
    def _argument(a: Any) -> Any:
        if isinstance(a, np.ndarray):
            return ctypes.c_void_p(a.ctypes.data)
        if a is None or isinstance(a, float):
            return ctypes.c_void_p(None) if a is None else ctypes.c_float(a)
        return ctypes.c_uint64(a) if a >= 1 << 63 else ctypes.c_int64(a)


CHECKED = (
    "cross_entropy_forward", "cross_entropy_backward", "route_backward", "sort_pairs", "gather_rows", "gather_sum", "gather_sum_backward",
    "forward", "backward", "linear_forward", "linear_backward", "linear_weight_gradient", "orthogonalise",
)  # fmt: skip
SEED = 0x1234_5678_9ABC_DEF1


# ---- kernels.c


def dropout(c: Library, x: Numbers, rnd: random.Random) -> None:
    n, threshold = rnd.choice((1, 2, 15, 16, 63, 64, 65, 127, 1000, 4097)), rnd.choice((1, 26, 128, 255))
    a, out = x.draw(n), x.empty(n)
    c("dropout_forward", a, out, n, SEED, threshold, 1.25, x.bf16)
    mask = kept(0, 1, n, SEED, threshold)[0]
    near("dropout", out, mask * floats(a) * 1.25, x.bf16)


def activations(c: Library, x: Numbers, rnd: random.Random) -> None:
    rows, F = rnd.choice((1, 2, 3, 7)), 16 * rnd.choice((1, 2, 3, 5, 9))
    a, out, slope = x.draw(rows, F, scale=2), x.empty(rows, F), x.empty(rows, F)
    v = floats(a)
    phi = np.vectorize(lambda t: 0.5 * (1 + math.erf(t / math.sqrt(2))))(v)
    slopes = rnd.random() < 0.7
    c("gelu_forward", a, out, slope if slopes else None, rows * F, 0, x.bf16)
    near("gelu", out, v * phi, x.bf16)
    if slopes:
        near("gelu's slope", slope, phi + v * np.exp(-0.5 * v * v) / math.sqrt(2 * math.pi), x.bf16)
    share = 1 / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    c("gelu_forward", a, out, None, rows * F, 1, x.bf16)
    near("gelu_tanh", out, v * share, x.bf16)

    both, out, slopes_of = x.draw(rows, 2, F, scale=2), x.empty(rows, F), x.empty(rows, 2, F)
    gate, up = floats(both).swapaxes(0, 1)
    s = 1 / (1 + np.exp(-gate))
    c("swiglu_forward", both, out, slopes_of if slopes else None, rows, F, x.bf16)
    near("swiglu", out, gate * s * up, x.bf16)
    if slopes:
        near("swiglu's slopes", slopes_of, np.stack((up * (s + gate * s * (1 - s)), gate * s), 1), x.bf16)
    grad, result = x.draw(rows, F), x.empty(rows, 2, F)
    c("times_slopes", grad, both, result, rows, F, 2, x.bf16)
    near("times_slopes", result, floats(grad)[:, None] * floats(both), x.bf16)


def norms(c: Library, x: Numbers, rnd: random.Random) -> None:
    rows, C, center = rnd.choice((1, 2, 255, 256, 257, 513)), 16 * rnd.choice((1, 2, 3, 8)), rnd.choice((0, 1))
    a, w, b = x.draw(rows, C), x.rng.normal(size=C).astype(np.float32), x.rng.normal(size=C).astype(np.float32) if center else None
    out, stats, eps = x.empty(rows, C), np.full((rows, 2), np.nan, np.float32), 1e-5
    c("norm_forward", a, w, b, out, stats, rows, C, eps, center, x.bf16)
    v = floats(a)
    mean = v.mean(1, keepdims=True) if center else np.zeros((rows, 1))
    inverse = 1 / np.sqrt(((v - mean) ** 2).mean(1, keepdims=True) + eps)
    n = (v - mean) * inverse
    near("norm", out, n * w + (0 if b is None else b), x.bf16)
    chunks = -(-rows // 256)
    grad, dx, dw = x.draw(rows, C), x.empty(rows, C), np.zeros((chunks, C), np.float32)
    db = np.zeros((chunks, C), np.float32) if center else None
    c("norm_backward", a, stats, w, grad, dx, dw, db, rows, C, center, x.bf16)
    g = floats(grad)
    level = (g * w).mean(1, keepdims=True) if center else 0
    near("norm's dx", dx, (g * w - level - n * (g * w * n).mean(1, keepdims=True)) * inverse, x.bf16)
    near("norm's dw", dw.sum(0), (g * n).sum(0), 0)
    if db is not None:
        near("norm's db", db.sum(0), g.sum(0), 0)


def heads(c: Library, x: Numbers, rnd: random.Random) -> None:
    T, B, H, D = rnd.choice((1, 3, 65)), rnd.choice((1, 2, 5)), rnd.choice((1, 3, 4)), 32 * rnd.choice((1, 2, 4))
    h, rows = rnd.randint(1, H), B * T
    a, gain = x.draw(rows, H, D), rnd.choice((None, x.rng.normal(size=(h, D)).astype(np.float32)))
    angles = x.rng.normal(size=(T, D // 2))
    cos, sin = np.tile(np.cos(angles), 2), np.concatenate((-np.sin(angles), np.sin(angles)), 1)
    table = np.stack((np.cos(angles), np.sin(angles))).astype(np.float32)
    out, stats, eps = x.empty(rows, H, D), np.full((rows, h), np.nan, np.float32), 1e-5
    c("heads_forward", a, gain, table, out, stats, rows, H, h, D, T, eps, x.bf16)
    at = np.arange(rows) % T
    cos, sin, v = cos[at][:, None], sin[at][:, None], floats(a)
    first = v[:, :h]
    inverse = 1 / np.sqrt((first**2).mean(-1, keepdims=True) + eps) if gain is not None else np.ones((rows, h, 1))
    n, w = first * inverse, 1 if gain is None else gain.astype(np.float64)
    near("heads", out, np.concatenate((n * w * cos + np.roll(n * w, D // 2, -1) * sin, v[:, h:]), 1), x.bf16)
    grad, dx, d_gain = x.draw(rows, H, D), x.empty(rows, H, D), np.zeros((-(-rows // 256), h, D), np.float32)
    c("heads_backward", a, gain, table, stats, grad, dx, d_gain, rows, H, h, D, T, x.bf16)
    g = floats(grad)
    turned = g[:, :h] * cos + np.roll(g[:, :h] * sin, D // 2, -1)
    d_first = turned if gain is None else (turned * w - n * (turned * w * n).mean(-1, keepdims=True)) * inverse
    near("heads' dx", dx, np.concatenate((d_first, g[:, h:]), 1), x.bf16)
    if gain is not None:
        near("heads' gain", d_gain.sum(0), (turned * n).sum(0), 0)


def cross_entropy(c: Library, x: Numbers, rnd: random.Random) -> None:
    rows, V = rnd.choice((1, 3, 50)), rnd.choice((1, 15, 16, 17, 65, 1000))
    logits, targets = x.draw(rows, V, scale=3), x.rng.integers(0, V, rows)
    targets[x.rng.random(rows) < 0.2] = -100
    losses, lse = np.full(rows, np.nan, np.float32), np.full(rows, np.nan, np.float32)
    c("cross_entropy_forward", logits, targets, losses, lse, rows, V, x.bf16)
    p, at = causal_softmax(floats(logits), np.full(rows, V)), np.arange(rows)
    near("losses", losses, np.where(targets == -100, 0, -np.log(p[at, np.maximum(targets, 0)])), 0)
    grad, dx = x.rng.normal(size=rows).astype(np.float32), x.empty(rows, V)
    c("cross_entropy_backward", logits, targets, lse, grad, dx, rows, V, x.bf16)
    p[at, np.maximum(targets, 0)] -= 1
    near("the gradient of losses", dx, p * np.where(targets == -100, 0, grad)[:, None], x.bf16)
    for bad in (V, -1):
        targets[-1] = bad
        c("cross_entropy_forward", logits, targets, losses, lse, rows, V, x.bf16, refused=True)
        c("cross_entropy_backward", logits, targets, lse, grad, dx, rows, V, x.bf16, refused=True)


# ---- experts.c


def route(c: Library, x: Numbers, rnd: random.Random) -> None:
    N, E, C = rnd.choice((1, 5, 256, 300)), rnd.choice((1, 2, 5, 64)), 16 * rnd.choice((1, 3))
    a, w, probs = x.draw(N, C), x.rng.normal(size=(E, C)).astype(np.float32), np.full((N, E), np.nan, np.float32)
    c("route_forward", a, w, probs, N, E, C, x.bf16)
    logits = floats(a) @ w.T.astype(np.float64)
    near("route", probs, causal_softmax(logits, np.full(N, E)), 0)
    grad, dx, dw = x.rng.normal(size=(N, E)).astype(np.float32), x.empty(N, C), np.zeros((-(-N // 256), E, C), np.float32)
    c("route_backward", a, w, probs, grad, dx, dw, N, E, C, x.bf16)
    d = probs * (grad - (probs * grad).sum(1, keepdims=True)).astype(np.float64)
    near("route's dx", dx, d @ w, x.bf16)
    near("route's dw", dw.sum(0), d.T @ floats(a), 0)


def experts(c: Library, x: Numbers, rnd: random.Random) -> None:
    N, k, E, C, pad = (
        rnd.choice((1, 7, 100)),
        rnd.choice((1, 2, 3)),
        rnd.choice((1, 3, 8)),
        16 * rnd.choice((1, 2)),
        rnd.choice((1, 4, 128)),
    )
    n = N * k
    chosen, M = x.rng.integers(0, E, n), -(-(n + E * (pad - 1)) // pad) * pad
    counts, room, order, back = (np.full(size, -1, np.int64) for size in (E, E, M, n))
    sort = (n, E, pad, M, counts, room, order, back)
    c("sort_pairs", chosen, *sort)
    if counts.sum() != M or sorted(order[order < n].tolist()) != list(range(n)) or not np.array_equal(order[back], np.arange(n)):
        raise SystemExit("sort_pairs lost a pair")
    expert_at = np.repeat(np.arange(E), counts)
    if not np.array_equal(expert_at[back], chosen):
        raise SystemExit("sort_pairs put a pair with another expert")
    a, width = x.draw(N, C), C * (2 if x.bf16 else 4)
    out = x.empty(M, C)
    c("gather_rows", a, order, out, M, n, k, width)
    rows = np.where((order < n)[:, None], floats(a)[np.minimum(order // k, N - 1)], 0)
    near("gather_rows", out, rows, x.bf16)
    y, weights, total = x.draw(M, C), x.rng.random((N, k)).astype(np.float32), x.empty(N, C)
    c("gather_sum", y, weights, back, total, N, k, C, M, x.bf16)
    near("gather_sum", total, (floats(y)[back].reshape(N, k, C) * weights[..., None]).sum(1), x.bf16)
    grad, dy, dw = x.draw(N, C), x.empty(M, C), np.full((N, k), np.nan, np.float32)
    c("gather_sum_backward", grad, y, weights, back, dy, dw, N, k, C, M, x.bf16)
    c("clear_padding", order, dy, M, n, width)
    expected = np.zeros((M, C))
    expected[back] = (floats(grad)[:, None] * weights[..., None]).reshape(n, C)
    near("gather_sum's dy", dy, expected, x.bf16)
    near("gather_sum's weights", dw, (floats(y)[back].reshape(N, k, C) * floats(grad)[:, None]).sum(-1), 0)
    bad = chosen.copy()
    for value in (-1, E, 1 << 62):
        bad[-1] = value
        c("sort_pairs", bad, *sort, refused=True)
    c("sort_pairs", chosen, n, E, pad, n - 1, counts, room, order, back, refused=True)
    order[0], back[0] = -1, M
    c("gather_rows", a, order, out, M, n, k, width, refused=True)
    c("gather_sum", y, weights, back, total, N, k, C, M, x.bf16, refused=True)
    c("gather_sum_backward", grad, y, weights, back, dy, dw, N, k, C, M, x.bf16, refused=True)


# ---- attention.c


def kept_weights(head: int, T: int, threshold: int) -> Array:
    """(T, T) whether dropout keeps the weight of each query and key: 16 queries and 4 keys are a group."""
    sides, quads = -(-T // 32) * 2, -(-T // 32) * 8
    groups = kept(head * sides * quads, sides * quads, 64, SEED, threshold).reshape(sides, quads, 4, 16)
    return groups.transpose(0, 3, 1, 2).reshape(sides * 16, quads * 4)[:T, :T]


def attention(c: Library, x: Numbers, rnd: random.Random) -> None:
    c("use_amx", rnd.choice((0, 1)))
    B, T, K, G, D = (
        rnd.choice((1, 2)),
        rnd.choice((1, 31, 32, 45, 64, 96, 129)),
        *(rnd.choice((1, 2)) for _ in "KG"),
        rnd.choice((1, 6, 16, 32, 50, 64)),
    )
    H, threshold = K * G, rnd.choice((0, 51))
    scale = 256 / (256 - threshold)
    qkv, out, lse = x.draw(B, T, H + 2 * K, D), x.empty(B, T, H, D), np.full((B, H, -(-T // 32) * 32), np.nan, np.float32)
    sizes = (B, T, H, K, D, SEED, threshold, scale, x.bf16)
    ends = x.rng.random((B, T)) < 0.1
    begins = rnd.choice((None, np.maximum.accumulate(np.where(ends, np.arange(T), 0), axis=1).astype(np.int64)))
    c("forward", qkv, begins, out, lse, *sizes)
    grad, d_qkv = x.draw(B, T, H, D), x.empty(B, T, H + 2 * K, D)
    c("backward", qkv, begins, out, lse, grad, d_qkv, *sizes)
    v_all, g_all, expected, d_expected = floats(qkv), floats(grad), np.zeros((B, T, H, D)), np.zeros((B, T, H + 2 * K, D))
    for b in range(B):
        for h in range(H):
            head = h // G
            q, k, v, g = v_all[b, :, h], v_all[b, :, H + head], v_all[b, :, H + K + head], g_all[b, :, h]
            p = causal_softmax(q @ k.T / math.sqrt(D), np.arange(T) + 1, None if begins is None else begins[b])
            mask = kept_weights(b * H + h, T, threshold) * scale
            expected[b, :, h] = (p * mask) @ v
            dp = (g @ v.T) * mask
            ds = p * (dp - (p * dp).sum(1, keepdims=True)) / math.sqrt(D)
            d_expected[b, :, h] += ds @ k
            d_expected[b, :, H + head] += ds.T @ q
            d_expected[b, :, H + K + head] += (p * mask).T @ g
    near("attention", out, expected, x.bf16)
    near("attention's gradient", d_qkv, d_expected, x.bf16)
    c("forward", qkv, begins, out, lse, B, 0, H, K, D, SEED, threshold, scale, x.bf16, refused=True)
    c("backward", qkv, begins, out, lse, grad, d_qkv, B, T, H, K + H, D, SEED, threshold, scale, x.bf16, refused=True)


# ---- products.c, always in bfloat16


def products(c: Library, x: Numbers, rnd: random.Random) -> None:
    x.bf16, M = 1, rnd.choice((1, 7, 8, 9, 97, 255, 257, 300))
    N, K = (16 * rnd.choice((1, 2, 3, 4, 7)) for _ in "NK")
    a, w, bias, grad = x.draw(M, K), x.rng.normal(size=(N, K)).astype(np.float32), x.rng.normal(size=N).astype(np.float32), x.draw(M, N)
    v, g, rounded = floats(a), floats(grad), floats(halves(w))
    y, dx, dw, db = x.empty(M, N), x.empty(M, K), np.full((N, K), np.nan, np.float32), np.zeros(N, np.float32)
    c("linear_forward", a, w, bias, y, None, M, N, K, 0)
    near("linear", y, v @ rounded.T + bias, 1)
    c("linear_backward", grad, w, None, dx, M, N, K, 0)
    near("linear's gradient by x", dx, g @ rounded, 1)
    c("linear_weight_gradient", grad, a, dw, db if rnd.random() < 0.7 else None, M, N, K)
    near("linear's gradient by w", dw, g.T @ v, 1)
    if db.any():
        near("linear's gradient by the bias", db, g.sum(0), 1)
    gated, slopes = rnd.choice((0, 1)), x.empty(M, N)
    width = N // 2 if gated else N
    if width % 16:
        return
    h = v @ rounded.T + (0 if gated else bias)
    out, tanh = x.empty(M, width), np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))
    silu = h[:, : N // 2] / (1 + np.exp(-h[:, : N // 2]))
    kept_slopes = slopes if rnd.random() < 0.7 else None
    c("linear_forward", a, w, None if gated else bias, out, kept_slopes, M, N, K, 3 if gated else 2)
    near("an activation", out, silu * h[:, N // 2 :] if gated else 0.5 * h * (1 + tanh), 1)
    times, down, dy = x.draw(M, (2 if gated else 1) * K), x.rng.normal(size=(N, K)).astype(np.float32), x.draw(M, N)
    into = np.tile(floats(dy) @ floats(halves(down)), 2 if gated else 1)
    to = x.empty(*times.shape)
    c("linear_backward", dy, down, times, to, M, N, K, 5 if gated else 4)
    near("a gradient times slopes", to, into * floats(times), 1)


# ---- muon.c


def muon(c: Library, x: Numbers, rnd: random.Random) -> None:
    count, rows, columns = rnd.choice((1, 2, 5)), *(16 * rnd.choice((1, 2, 3, 5, 7)) for _ in "rc")
    matrices = x.rng.normal(size=(count, rows, columns)).astype(np.float32)
    out = np.full(matrices.shape, np.nan, np.float32)
    c("orthogonalise", matrices, out, count, rows, columns, 1, 3.0, -4.0, 2.0)
    v = floats(matrices) / np.sqrt((floats(matrices) ** 2).sum((1, 2), keepdims=True))
    gram = v @ v.transpose(0, 2, 1)
    near("orthogonalise", out, 3 * v + (2 * gram @ gram - 4 * gram) @ v, 1)


PARTS: dict[str, tuple[Callable[[Library, Numbers, random.Random], None], ...]] = {
    "kernels": (dropout, activations, norms, heads, cross_entropy),
    "experts": (route, experts),
    "attention": (attention,),
    "products": (products,),
    "muon": (muon,),
}


def main(name: str, library: str, cases: int, seed: int) -> None:
    c, rnd, rng = Library(library), random.Random(seed), np.random.default_rng(seed)
    done = 0
    while done < cases:
        c.lib.set_threads(rnd.randint(1, 8))
        for part in PARTS[name]:
            part(c, Numbers(rng, rnd.choice((0, 1))), rnd)
            done += 1
    print(f"{name}: {done} cases")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
