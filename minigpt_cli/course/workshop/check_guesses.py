"""The checks of blanks 5 to 7: the loss, sampling, and one merge of byte pair encoding.

Shapes: T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minigpt_cli.course.workshop import my_gpt
from minigpt_cli.course.workshop.judging import NOTHING, Function, Wrong, is_close, is_right, random, shaped

# ---- 5: the loss


def check_loss(loss: Function) -> None:
    V, T = 65, 9
    ids = torch.arange(T)[None]
    cost = shaped(loss(torch.zeros(1, T, V), ids), (), "the loss")
    right = math.log(V)
    uniform = f"the loss of a uniform guess over {V} characters must be ln {V} = {right:.3f}; yours is {float(cost):.3f}"
    for wrong, why in [
        (right / V, f"it is divided by {V} too, take the mean over the guesses alone"),
        (right * (T - 1), f"the mean over the {T - 1} guesses is missing"),
        (right * T, f"the mean is missing, and {T} guesses are counted where the last has no answer"),
        (right * (T - 1) / T, f"it is divided by {T}, but there are {T - 1} guesses: the last logits have no answer"),
        (-right, "the minus sign is missing"),
        (right / math.log(2), "that is in bits, take the natural logarithm"),
        (V, "that is the perplexity, the loss is its logarithm"),
        (-1 / V, "that is minus the probability, take its logarithm"),
        (0.0, "no guess costs anything"),
    ]:
        if abs(float(cost) - wrong) < 1e-3:
            raise Wrong(f"{uniform}: {why}")
    logits = (2 * random(3, 6, 7, seed=7)).requires_grad_()
    ids = torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(8))
    got, want = shaped(loss(logits, ids), (), "the loss"), my_gpt.loss(logits, ids)

    def mean(logits: Tensor, ids: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())

    unshifted = "each guess is compared with the token that it was made from: the logits at place t guess the token at t + 1"
    mistakes = [
        (mean(logits, ids), unshifted),
        (mean(logits[:, :-1], ids[:, :-1]), unshifted),
        (mean(logits[:, 1:], ids[:, 1:]), unshifted),
        (mean(logits[:, 1:], ids[:, :-1]), "shifted the wrong way: the logits at place t are compared with the token at t - 1, not t + 1"),
        (mean(logits, ids.roll(-1, 1)), "the last logits are compared with the first token: they have no answer, leave them out"),
        (mean(logits[:, :-1].softmax(-1), ids[:, 1:]), "softmax is taken twice: the second time of probabilities instead of logits"),
        (my_gpt.loss(logits[:1], ids[:1]), "only the first text counts: take the mean over all texts"),
        (-logits[:, :-1].log_softmax(1).gather(2, ids[:, 1:, None]).mean(), "softmax is over the places: take it over the vocabulary"),
    ]
    if not is_right(got, want, mistakes):
        raise Wrong(
            f"{uniform}" if abs(float(cost) - right) > 1e-3 else f"of random logits the loss must be {want:.3f}; yours is {got:.3f}"
        )
    if not got.requires_grad:
        raise Wrong(
            "the number is right, but torch cannot differentiate it: compute it with tensors alone, without .item() or torch.no_grad"
        )


# ---- 6: sampling


def check_probabilities(probabilities: Function) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.1, -0.4, 0.8, -2.2])
    V = len(logits)

    def ask(temperature: float, top_k: int) -> Tensor:
        return shaped(probabilities(logits, temperature, top_k), (V,), f"the result at temperature {temperature:g}")

    def must_sum(p: Tensor, when: str) -> None:
        if abs(float(p.sum()) - 1) > 1e-3:
            raise Wrong(f"the probabilities must sum to 1; yours sum to {float(p.sum()):.2f} {when}")

    p = ask(1.0, 0)
    if not is_right(p, logits.softmax(0), [(logits, "these are the logits: softmax is missing"), (torch.zeros(V), _ALL)]):
        must_sum(p, "at temperature 1, with top_k 0")
        raise Wrong(
            _ALL if int((p > 0).sum()) < V else "at temperature 1, with top_k 0, the probabilities must be the softmax of the logits"
        )
    p, want = ask(0.5, 0), (logits / 0.5).softmax(0)
    safer = f"temperature 0.5 must raise the largest probability from {logits.softmax(0).max():.2f} to {want.max():.2f}"
    mistakes = [
        ((logits * 0.5).softmax(0), f"{safer}; yours falls to {p.max():.2f}: divide by the temperature, do not multiply"),
        (logits.softmax(0), f"{safer}; yours does not change: the temperature is not used, or not before softmax"),
        (logits.softmax(0) / 0.5, "the probabilities must sum to 1; yours sum to 2: divide the logits, before softmax"),
    ]
    if not is_right(p, want, mistakes):
        must_sum(p, "at temperature 0.5")
        raise Wrong(f"{safer}; yours is {p.max():.2f}")
    _check_top_k(ask(1.0, 3), logits, must_sum)
    try:
        p = ask(1.0, 100)
    except (RuntimeError, IndexError) as error:
        raise Wrong(f"top_k 100 of {V} tokens must keep all {V}: use min(top_k, len(logits))") from error
    if not is_close(p, logits.softmax(0)):
        raise Wrong(f"top_k 100 of {V} tokens must keep all {V}")
    try:
        p = ask(0.0, 0)
    except (ZeroDivisionError, RuntimeError) as error:
        raise Wrong(_GREEDY) from error
    if not is_close(p, torch.nn.functional.one_hot(logits.argmax(), V).float()):
        raise Wrong(
            _GREEDY if not torch.isfinite(p).all() else "at temperature 0 the largest logit must get probability 1, and all others 0"
        )
    if not is_close(ask(0.5, 2), my_gpt.probabilities(logits, 0.5, 2)):
        raise Wrong("temperature 0.5 and top_k 2 are right alone and wrong together")


_ALL = "top_k 0 means that all tokens stay; yours takes tokens out"
_GREEDY = "temperature 0 divides by zero: answer it first, the largest logit gets probability 1"


def _check_top_k(p: Tensor, logits: Tensor, must_sum: Callable[[Tensor, str], None]) -> None:
    def kept(k: int, fill: float = -math.inf) -> Tensor:
        return logits.masked_fill(logits < logits.topk(k).values[-1], fill).softmax(0)

    alone = logits.softmax(0)
    smallest = logits.masked_fill(logits > logits.sort().values[2], -math.inf).softmax(0)
    left = "top_k 3 must leave 3 tokens, and yours leaves"
    late = alone.masked_fill(logits < logits.topk(3).values[-1], 0)
    mistakes = [
        (kept(4), f"{left} 4: one too many"),
        (kept(2), f"{left} 2: one too few"),
        (alone, f"{left} all 7: top_k is not used"),
        (kept(3, 0.0), "a token that is out still gets a probability, since e^0 is 1: its logit must be minus infinity, not 0"),
        (late, f"the 3 that stay must sum to 1; yours sum to {float(p.sum()):.2f}: take the others out before softmax"),
        (smallest, "top_k keeps the 3 least probable tokens: keep the most probable"),
    ]
    if not is_right(p, kept(3), mistakes):
        must_sum(p, "with top_k 3")
        raise Wrong(f"{left} {int((p > 1e-6).sum())}, or gives them other probabilities than softmax of their logits")


# ---- 7: one merge


def check_merge(merge: Function) -> None:
    twice, order = "a token is used twice: after a pair go on by two tokens", "the order counts: h, t is not the pair t, h"
    by_text = 'the letters "abc" are joined, but the tokens "ab", "c" are not the pair "a", "bc": compare tokens'
    cases: list[tuple[str, str, dict[str, str]]] = [  # tokens, pair, what mistakes make of them
        ("t h e", "t h", {"th": "the last token is lost: after the pair there is one more", "t h e": "nothing is joined"}),
        ("x t h", "t h", {"x t h": "the pair at the end is not joined: the loop ends too early"}),
        ("t h t h o", "t h", {"th t h o": "only the first pair is joined: go on to the end"}),
        ("a a a", "a a", {"aa aa": twice, "a aa": "go from left to right: the first two are joined"}),
        ("a a a a", "a a", {"aa aa aa": twice, "aaaa": "a joined token is joined again in the same pass"}),
        ("h t t", "t h", {"ht t": order, "th t": order}),
        ("ab c a bc", "a bc", {"abc abc": by_text}),
        ("q", "t h", {}),
        ("", "t h", {}),
    ]
    for text, joined, mistakes in cases:
        tokens, (left, right) = text.split(), joined.split()
        asked = f"merge({tokens}, {(left, right)})"
        got = merge(tokens, (left, right))
        want = my_gpt.merge(tokens, (left, right))
        if got is None:
            raise Wrong(NOTHING)
        if not isinstance(got, list) or not all(isinstance(token, str) for token in got):
            raise Wrong(f"{asked} must be a list of tokens; yours is {str(got)[:40]!r}")
        if got == want:
            continue
        if sentence := mistakes.get(" ".join(got)):
            raise Wrong(f"{asked} must be {want}; yours is {got}: {sentence}")
        if len("".join(got)) < len("".join(tokens)):
            raise Wrong(f"{asked} must be {want}; yours is {got}: letters are lost")
        if len("".join(got)) > len("".join(tokens)):
            raise Wrong(f"{asked} must be {want}; yours is {got[:6]}: letters are there twice")
        raise Wrong(f"{asked} must be {want}; yours is {got}")
