"""The checks of blanks 1 to 4: the mask, attention, RMSNorm and the rotation.

Shapes: B texts, H heads, T tokens, D channels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minigpt_cli.course.workshop import my_gpt
from minigpt_cli.course.workshop.judging import Function, Wrong, is_close, is_right, random, shaped

# ---- 1: the mask


def check_future_mask(future_mask: Function) -> None:
    for T in (7, 1, 4):
        got = shaped(future_mask(T), (T, T), f"the mask of {T} tokens")
        if got.dtype != torch.bool:
            raise Wrong(f"the mask must be of True and False (torch.bool); yours is of {str(got.dtype).removeprefix('torch.')}")
        want = my_gpt.future_mask(T)
        if torch.equal(got, want):
            continue
        everything = torch.ones(T, T, dtype=torch.bool)
        if torch.equal(got, ~want):
            raise Wrong("True and False are exchanged: True means hidden, and yours is True where a token may look")
        if torch.equal(got, everything.triu(0)):
            raise Wrong("no token may look at itself: then token 0 may look nowhere, and its weights are 0 / 0. False on the diagonal")
        leak = _leak(lambda T: future_mask(T))
        if leak and torch.equal(got, everything.tril(-1)):
            raise Wrong(f"{leak}. Your mask hides the past instead: rows and columns are exchanged")
        if leak:
            raise Wrong(leak)
        t, n = (got != want).nonzero()[0].tolist()
        raise Wrong(f"of {T} tokens, row {t}, column {n} must be {bool(want[t, n])}: token {t} may look at token {n}, which is before it")


def _leak(future_mask: Function) -> str:
    """Which guess of a small model with this mask depends on a character that it must not know; empty if none does."""
    config: my_gpt.Config = {"n_embd": 8, "n_head": 2, "n_kv_head": 0, "n_layer": 1, "block_size": 16, "qk_norm": False}
    config |= {"rope_theta": 100.0, "rms_norm_eps": 1e-6}
    shapes = {"token_embedding": (9, 8), "blocks.0.attention.qkv": (24, 8), "blocks.0.attention.out": (8, 8)}
    shapes |= {"blocks.0.mlp.gate_up": (32, 8), "blocks.0.mlp.down": (8, 16)}
    weights = {f"{name}.weight": random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    weights |= {f"{name}.weight": torch.ones(8) for name in ("blocks.0.norm1", "blocks.0.norm2", "final_norm")}
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    right = my_gpt.future_mask
    # A row that hides everything gives nan, which no guess can be compared by.
    my_gpt.future_mask = lambda T: future_mask(T) & ~torch.eye(T, dtype=torch.bool)
    try:
        for changed in (5, 4, 6, 3, 2, 1):
            other = ids.clone()
            other[0, changed] = 8
            before, after = (my_gpt.gpt(weights, config, x)[0].nan_to_num() for x in (ids, other))
            different = [t + 1 for t in range(changed) if not torch.allclose(before[t], after[t], atol=1e-6)]
            if different:
                guess = 3 if 3 in different else different[0]
                return f"changing character {changed} changed the guess for {guess}: the future leaks"
    finally:
        my_gpt.future_mask = right
    return ""


# ---- 2: attention


def check_attention(attention: Function) -> None:
    B, H, T, D = 2, 3, 5, 8
    q, k = 2 * random(B, H, T, D, seed=1), random(B, H, T, D, seed=2)
    hidden = my_gpt.future_mask(T)
    v = torch.eye(T, D).expand(B, H, T, D)  # value n is 1 at place n, so the result of a query is its weights
    got = attention(q, k, v, hidden)
    if isinstance(got, Tensor) and got.shape == (B, H, T, T):
        raise Wrong(f"the result has the shape {(B, H, T, T)}, that of the weights: multiply them by v, which gives {(B, H, T, D)}")
    got = shaped(got, (B, H, T, D), "the result")
    want = my_gpt.attention(q, k, v, hidden)
    scores = q @ k.mT
    root = math.sqrt(D)

    def weights(scores: Tensor, dim: int = -1) -> Tensor:
        return scores.masked_fill(hidden, -math.inf).softmax(dim) @ v

    def given(weights: Tensor) -> str:
        return f"query 1 gives weight {weights[0, 0, 1, 3]:.2f} to key 3, which is hidden"

    good, open_ = scores / root, (scores / root).softmax(-1) @ v
    late, zeroed = good.softmax(-1).masked_fill(hidden, 0) @ v, good.masked_fill(hidden, 0).softmax(-1) @ v
    sharp = f"the largest weight of query 4 is {weights(scores)[0, 0, 4].max():.2f} instead of {want[0, 0, 4].max():.2f}"
    columns = "Your columns sum to 1: take softmax over the keys, the last dimension"
    unscaled = f"the mask is not used, and the scores are not divided by the root of D, {root:.2f}"
    mistakes = [
        (weights(scores), f"the scores are not divided by the square root of D: {sharp}"),
        (weights(scores / D), f"the scores are divided by D = {D}: divide by its square root, {root:.2f}"),
        (weights(scores * root), "the scores are multiplied by the square root of D: divide by it"),
        (weights(good, -2), f"{_row_sum(weights(good, -2))}. {columns}"),
        (weights(scores, -2), f"{_row_sum(weights(scores, -2))}. {columns}"),
        (weights(good, 1), "the heads share their weights: take softmax over the keys, the last dimension"),
        (late, f"{_row_sum(late)}. The mask comes after softmax: hide the scores, before softmax"),
        (open_, f"{given(open_)}: the mask is not used"),
        (scores.softmax(-1) @ v, f"{given(scores.softmax(-1))}: {unscaled}"),
        (zeroed, f"{given(zeroed)}: a score of 0 still counts, since e^0 is 1. Use minus infinity"),
        (good.masked_fill(~hidden, -math.inf).softmax(-1) @ v, "each query sees only what comes after it: True means hidden"),
        (good.masked_fill(hidden, 0) @ v, "the weights do not sum to 1: softmax is missing"),
    ]
    if not is_right(got, want, mistakes):
        if sentence := _row_sum(got):
            raise Wrong(sentence)
        if (got[..., :T].masked_select(hidden).abs() > 1e-4).any():
            raise Wrong("a query gives weight to a key that is hidden: its weight must be 0")
        raise Wrong(f"the weights are not softmax of the scores: those of query 1 are {_numbers(got[0, 0, 1, :2])} "
                    f"instead of {_numbers(want[0, 0, 1, :2])}")  # fmt: skip
    v = random(B, H, T, D, seed=3)
    if not is_close(attention(q, k, v, hidden), my_gpt.attention(q, k, v, hidden)):
        raise Wrong("the weights are right, but the result is not the sum of the values times their weights: weights @ v")


def _row_sum(result: Tensor) -> str:
    """The first row of weights that does not sum to 1, as a sentence; empty if all do."""
    sums = result.sum(-1)[0, 0]
    off = [t for t, total in enumerate(sums.tolist()) if abs(total - 1) > 1e-3]
    worst = max(off, key=lambda t: abs(float(sums[t]) - 1), default=0)
    return f"each row of the weights must sum to 1: row {worst} sums to {float(sums[worst]):.1f}" if off else ""


def _numbers(row: Tensor) -> str:
    return " ".join(f"{x:.2f}" for x in row.tolist())


# ---- 3: RMSNorm


def check_rms_norm(rms_norm: Function) -> None:
    x, gain, eps = 3 * random(2, 3, 8, seed=4) + 1, random(8, seed=5).abs() + 0.5, 1e-6
    got = shaped(rms_norm(x, gain, eps), (2, 3, 8), "the result")
    want = my_gpt.rms_norm(x, gain, eps)
    mean, square, std = x.mean(-1, keepdim=True), x.square().mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=0)

    def rms(y: Tensor) -> str:
        size = float((y / gain)[0, 0].square().mean().sqrt())
        return f"the root mean square of each token must be 1 before the gain; that of token 0 is {size:.2f}"

    length = x / x.norm(dim=-1, keepdim=True) * gain
    layer_norm = "the mean is subtracted: LayerNorm does that, RMSNorm does not"
    deviation = "you divide by the standard deviation, which leaves out the mean: square x itself"
    mistakes = [
        (x / mean * gain, "you divide by the mean: divide by the root of the mean of the squares"),
        (x / x.abs().mean(-1, keepdim=True) * gain, "you divide by the mean of the absolute values: square, mean, then root"),
        (x / square * gain, f"{rms(x / square * gain)}: you divide by the mean square, take its root"),
        (length, f"{rms(length)}: the squares are summed, take their mean"),
        ((x - mean) / std * gain, layer_norm),
        ((x - mean) / x.std(-1, keepdim=True) * gain, layer_norm),
        ((x - mean) / square.sqrt() * gain, layer_norm),
        (x / std * gain, deviation),
        (x / x.std(-1, keepdim=True) * gain, deviation),
        (x / square.sqrt(), "the gain is missing: multiply by it at the end"),
        (x * square.sqrt() * gain, "you multiply by the root mean square: divide by it"),
    ]
    if not is_right(got, want, mistakes):
        other = x.clone()
        other[0, 1] += 1
        if not is_close(rms_norm(other, gain, eps)[0, 0], got[0, 0]):
            raise Wrong("changing token 1 changed the norm of token 0: take the mean over the last dimension alone")
        raise Wrong(rms(got))
    large = 0.5
    late = x / (square.sqrt() + large) * gain
    got = rms_norm(x, gain, large)
    if not is_right(
        got, my_gpt.rms_norm(x, gain, large), [(want, "eps is not used"), (late, "eps is added to the root: add it before the root")]
    ):
        raise Wrong("eps is not added to the mean square before the root")


# ---- 4: the rotation


def check_rotate(rotate: Function) -> None:
    x = random(2, 2, 4, 6, seed=6)
    angles = torch.outer(torch.arange(4.0), torch.tensor([1.0, 0.3, 0.1]))
    got = shaped(rotate(x, angles), tuple(x.shape), "the result")
    want = my_gpt.rotate(x, angles)
    (a, b), cos, sin = x.chunk(2, -1), angles.cos(), angles.sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    new_even, new_odd = even * cos - odd * sin, odd * cos + even * sin
    turned = a * cos - b * sin
    neighbours = "you turn channels 0 and 1, which are neighbours; here a pair is one channel of each half, as 0 and 3 of 6"
    length = "a pair must keep its length when it is turned"
    mistakes = [
        (torch.stack((new_even, new_odd), -1).flatten(-2), neighbours),
        (torch.cat((new_even, new_odd), -1), neighbours),
        (torch.cat((a * cos + b * sin, b * cos - a * sin), -1), "the pairs turn the wrong way: the minus belongs to the first half"),
        (torch.cat((a * sin - b * cos, b * sin + a * cos), -1), "cos and sin are exchanged: token 0, of angle 0, must not change"),
        (torch.cat((b * cos + a * sin, turned), -1), "the two halves are joined in the wrong order"),
        (torch.cat((turned, b * cos + turned * sin), -1), "the second half is made of the new a: both need the old a and b"),
        (torch.cat((a * cos + b * sin, b * cos + a * sin), -1), f"{length}: the first half is a cos minus b sin"),
        (torch.cat((turned, b * cos - a * sin), -1), f"{length}: the second half is b cos plus a sin"),
        (torch.cat((a * angles - b * angles, b * angles + a * angles), -1), "use the cos and the sin of the angles"),
        (x, "nothing is turned: token 3 looks as if it stood at place 0"),
    ]
    if not is_right(got, want, mistakes):
        if not is_close(got[:, :, 0], x[:, :, 0]):
            raise Wrong("token 0 has the angle 0 and must stay as it is; yours changes it")
        before, after = (float(torch.hypot(*(y[0, 0, 3, i] for i in (0, 3)))) for y in (x, got))
        if abs(before - after) > 1e-3:
            raise Wrong(
                f"a pair must keep its length when it is turned: that of token 3, channels 0 and 3, went from {before:.2f} to {after:.2f}"
            )
        raise Wrong("the pairs keep their length but are not turned by their angle: (a, b) becomes (a cos - b sin, b cos + a sin)")
