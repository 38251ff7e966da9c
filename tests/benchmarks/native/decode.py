"""decoder.c over odd shapes, against the formulas in float64: python decode.py LIBRARY CASES SEED. Run by sanitizers.py."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import random
import sys
from contextlib import suppress
from typing import Any

import numpy as np
from pydantic import ValidationError

from minigpt_cli.config import ClassicConfig, ModernConfig, MoEConfig
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.generation import sampling
from minigpt_cli.generation.decoders import c as native
from minigpt_cli.generation.decoders import c_model
from minigpt_cli.generation.decoders.weights import DecoderWeights, Layer, decoder_weights, expected_shapes
from minigpt_cli.generation.sampling import NotFinite, Sampling
from minigpt_cli.storage import native_build

HEADS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 100, 127, 128, 130)
BLOCKS = (1, 2, 3, 7, 8, 16, 17, 31, 64, 100)
VOCABULARIES = (1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 257, 1000, 3000)
FAR = {32: 2e-3, 16: 3e-2, 8: 3e-2}  # of the largest logit


class Exact:
    """In place of the arena: each matrix in a piece of its own and of its own size, so that every step beyond it is seen."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self.kept: list[Any] = []

    def array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self.kept.append(np.zeros(shape, dtype))
        return self.kept[-1]


def weights_of(config: Any, vocab_size: int, rng: np.random.Generator, scale: float = 0.3) -> Any:
    """A weights of random weights; gains are around 1."""
    shapes = expected_shapes(config, vocab_size)
    return decoder_weights(config, {n: (rng.normal(size=s) * (scale if len(s) > 1 else 1)).astype(np.float32) for n, s in shapes.items()})


def in_8_bits(weights: DecoderWeights) -> DecoderWeights:
    """The weights as the decoder rounds them, so that nothing but its arithmetic differs."""

    def rounded(matrix: Any) -> Any:
        numbers, scale = c_model.quantised(matrix, 8)
        return numbers * scale[:, None]

    layers = [
        dataclasses.replace(
            layer,
            qkv=rounded(layer.qkv),
            out=rounded(layer.out),
            up=np.stack([rounded(m) for m in layer.up]),
            down=np.stack([rounded(m) for m in layer.down]),
        )
        for layer in weights.layers
    ]
    return dataclasses.replace(weights, layers=tuple(layers), head=rounded(weights.head))


def some_config(rnd: random.Random) -> Any:
    D, H = rnd.choice(HEADS), rnd.choice((1, 2, 3, 5))
    sizes: dict[str, Any] = {"block_size": rnd.choice(BLOCKS), "n_layer": rnd.choice((1, 2)), "n_head": H, "n_embd": D * H}
    kind = rnd.choice(("classic", "modern", "moe"))
    if kind == "classic":
        return ClassicConfig(**sizes, activation=rnd.choice(("gelu", "relu", "gelu_tanh")), bias=rnd.random() < 0.5)
    sizes |= {"ffn_mult": rnd.choice((0.1, 1, 8 / 3)), "n_kv_head": rnd.choice((0, 1)), "qk_norm": rnd.random() < 0.5}
    if kind == "modern":
        return ModernConfig(**sizes)
    E = rnd.choice((1, 2, 5, 70))
    experts: dict[str, Any] = {"n_experts": E, "moe_top_k": rnd.randint(1, min(E, 64)), "moe_norm_topk": rnd.random() < 0.5}
    return MoEConfig(**sizes | {"ffn_mult": 0.1}, **experts, moe_balance=rnd.choice(("aux", "bias")))


# ---- the formulas of a weights: all logits of a text at once, in float64. T tokens, C channels, D head size


def logits_of(weights: DecoderWeights, ids: list[int]) -> Any:
    """(T, V): the logits after each of `ids`, each token seeing as many before it as the weights's block has."""
    x = weights.embedding[ids].astype(np.float64)  # (T, C)
    if weights.positions is not None:
        x += weights.positions[: len(ids)]
    for layer in weights.layers:
        x += attention(weights, layer, normed(x, weights.norm_eps))
        x += feed_forward(weights, layer, normed(x, weights.norm_eps))
    return plus(normed(x, weights.norm_eps) @ weights.head.T, weights.head_bias)


def normed(x: Any, eps: float) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def plus(x: Any, bias: Any) -> Any:
    return x if bias is None else x + bias


def softmax(x: Any) -> Any:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(weights: DecoderWeights, layer: Layer, x: Any) -> Any:
    T, H, K, D = len(x), weights.n_head, weights.n_kv_head, weights.head_size
    heads = plus(x @ layer.qkv.T, layer.qkv_bias).reshape(T, H + 2 * K, D).swapaxes(0, 1)  # (H + 2K, T, D)
    qk, v = heads[: H + K], heads[H + K :]
    if layer.qk_gain is not None:
        qk = normed(qk, weights.norm_eps) * layer.qk_gain[:, None]
    if weights.rope_theta:
        angles = np.arange(T)[:, None] * weights.rope_theta ** (-np.arange(0, D, 2) / D)  # (T, D / 2)
        a, b = qk[..., : D // 2], qk[..., D // 2 :]
        qk = np.concatenate((a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)), -1)
    q, k, v = qk[:H], qk[H:].repeat(H // K, 0), v.repeat(H // K, 0)
    ago = np.arange(T)[:, None] - np.arange(T)
    scores = np.where((ago >= 0) & (ago < weights.block_size), q @ k.swapaxes(1, 2), -np.inf)
    return plus((softmax(scores) @ v).swapaxes(0, 1).reshape(T, -1) @ layer.out.T, layer.out_bias)


def feed_forward(weights: DecoderWeights, layer: Layer, x: Any) -> Any:
    if layer.router is None:
        return plus(activated(weights, plus(x @ layer.up[0].T, layer.up_bias)) @ layer.down[0].T, layer.down_bias)
    probs = softmax(x @ layer.router.T)
    chosen = np.argsort(-plus(probs, layer.router_bias), axis=-1, kind="stable")[:, : weights.moe_top_k]
    shares = np.zeros_like(probs)  # (T, E)
    np.put_along_axis(shares, chosen, np.take_along_axis(probs, chosen, -1), -1)
    if weights.moe_norm_topk:
        shares /= shares.sum(-1, keepdims=True)
    y = np.zeros_like(x)
    for e, weight in enumerate(shares.T):
        rows = weight > 0
        y[rows] += weight[rows, None] * (activated(weights, x[rows] @ layer.up[e].T) @ layer.down[e].T)
    return y


def activated(weights: DecoderWeights, x: Any) -> Any:
    if weights.activation == "relu":
        return np.maximum(x, 0)
    if weights.activation == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if weights.activation == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    gate, up = np.split(x, 2, axis=-1)
    return gate * 0.5 * (1 + np.tanh(gate / 2)) * up  # SwiGLU: tanh does not overflow


# ---- the C library beside them


def difference(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / (1e-2 + np.abs(expected).max()))


def drive(config: Any, vocab_size: int, slots: int, threads: int, bits: int, rnd: random.Random, rng: np.random.Generator) -> float:
    """Prompts, copies, steps of one and many rows with changing numbers of threads, beyond the block; the largest difference."""
    weights = weights_of(config, vocab_size, rng)
    ours = native.NativeDecoder(weights, slots, bits=bits, threads=threads, by_bytes=rnd.random() < 0.7)
    if bits == 8:
        weights = in_8_bits(weights)
    length = min(config.block_size, rnd.choice((1, 2, 63, 64, 65, 130)))
    ids = rng.integers(0, vocab_size, length).tolist()
    found = [[ours.extend(0, ids, 0).copy()]] + [[] for _ in range(slots - 1)]
    texts = [list(ids) for _ in range(slots)]
    for slot in range(1, slots):
        ours.copy(0, slot, length)
    rows = list(range(min(slots, c_model.MAX_ROWS)))
    more = config.block_size - length if not ours.endless else min(3 * config.block_size, 20)
    for position in range(length, length + min(more, 20)):
        for tuning in ours._threads:
            tuning.best = rnd.randint(1, threads)
        tokens = rng.integers(0, vocab_size, len(rows)).tolist()
        if rnd.random() < 0.3:
            rnd.shuffle(rows)
        logits = ours.step(tokens, rows, [position] * len(rows)).copy()
        for slot, token, row in zip(rows, tokens, logits, strict=True):
            texts[slot].append(token)
            found[slot].append(row)
        check_choice(ours, logits, rnd, rng)
    worst = max(difference(np.array(found[s]), logits_of(weights, texts[s])[-len(found[s]) :]) for s in range(slots) if found[s])
    for bad in ([vocab_size], [0], [0]), ([0], [slots], [0]), ([-1], [0], [0]), ([0], [0], [-1]):
        with suppress(MiniGPTError):
            ours.step(*bad)
            raise SystemExit(f"indices {bad} were taken")
    return worst


def check_choice(decoder: Any, logits: Any, rnd: random.Random, rng: np.random.Generator) -> None:
    V = logits.shape[1]
    settings = Sampling(
        rnd.choice((0, 0.5, 1.0)),
        rnd.choice((0, 1, 5, V, V + 3)),
        rnd.choice((1.0, 0.5, 1e-9)),
        rnd.choice((0, 0.1, 1.0)),
        rnd.choice((1.0, 1.3)),
    )
    uniforms, seen = rng.random(len(logits)), rng.random(logits.shape) < 0.2
    found, expected = decoder.choose(logits, settings, uniforms, seen)[0], sampling.choose(logits, settings, uniforms, seen)[0]
    if found.tolist() != expected.tolist():
        raise SystemExit(f"{settings} chose {found.tolist()} and should have chosen {expected.tolist()}")


def drive_overflow(rng: np.random.Generator) -> None:
    """Finite weights whose products are not: an error, and nothing undefined on the way to it."""
    for bits in (8, 16, 32):
        weights = weights_of(MoEConfig(block_size=8, n_layer=2, n_head=2, n_embd=16), 11, rng)
        weights = dataclasses.replace(weights, embedding=weights.embedding * np.float32(1e37), head=weights.head * np.float32(1e38))
        for layer in weights.layers:
            layer.qkv[:], layer.down[:] = 1e38, -1e38
        decoder = native.NativeDecoder(weights, 3, bits=bits, threads=2)
        decoder.extend(0, [1, 2, 3], 0)
        logits = decoder.step([1, 2, 3], [0, 1, 2], [3, 3, 3])
        if not np.isfinite(logits).all():
            with suppress(NotFinite):
                decoder.choose(logits, Sampling(), np.full(3, 0.5))
                raise SystemExit("a token was chosen from logits that are not finite")


def main(library: str, cases: int, seed: int) -> None:
    found = ctypes.CDLL(library)
    native_build.load = lambda source, flags=(): found
    c_model._Arena = Exact  # type: ignore[assignment, misc]
    rnd, rng = random.Random(seed), np.random.default_rng(seed)
    done, worst = 0, {8: 0.0, 16: 0.0, 32: 0.0}
    while done < cases:
        try:
            config = some_config(rnd)
        except ValidationError:
            continue
        bits = rnd.choice((8, 16, 32))
        vocab_size, slots, threads = rnd.choice(VOCABULARIES), rnd.choice((1, 2, 7, 64)), rnd.choice((1, 2, 3, 5, 8))
        far = drive(config, vocab_size, slots, threads, bits, rnd, rng)
        if far > FAR[bits]:
            raise SystemExit(f"{config!r} with {vocab_size} tokens at {bits} bits is off by {far:.2g}")
        worst[bits], done = max(worst[bits], far), done + 1
    small = ClassicConfig(block_size=8, n_layer=1, n_head=1, n_embd=8)
    for vocab_size in (70_000, 65_536, 50_257)[: 1 + cases // 50]:
        drive(small, vocab_size, 3, 2, 16, rnd, rng)
    drive_overflow(rng)
    differences = ", ".join(f"{bits} bits {far:.1e}" for bits, far in worst.items())
    with np.errstate(all="ignore"):
        print(f"decoder: {done} models, tiles {bool(found.mg_tiles())}, largest difference: {differences}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
