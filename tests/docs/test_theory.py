"""Every number on the theory page is computed here again: by torch, by its autograd, and by the formulas of models/.

Each line of a block of numbers has a label and values. A decimal number in a sentence has to be a value of a block, perhaps rounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt_cli.config import ModernConfig
from minigpt_cli.generation.sampling import Sampling, filtered, probabilities
from minigpt_cli.models.attention import CausalAttention
from minigpt_cli.models.contract import build_model

DOCS = Path(__file__).parents[2] / "minigpt_cli" / "docs"
PAGE, INSIDE = ((DOCS / name).read_text("utf-8") for name in ("theory.md", "inside.md"))
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
ROW = re.compile(r"(\S.*?)  +([\d.,+−∞ -]+)")
HEADS, KEYS, DRAWS = (8, 32, 128, 512), 64, 500


def shown() -> dict[str, list[str]]:
    """The values of each label, as they are written on the page."""
    lines = [line for kind, block in BLOCKS.findall(PAGE) if kind == "numbers" for line in block.splitlines() if line]
    rows = [ROW.fullmatch(line) for line in lines]
    assert all(rows), [line for line, row in zip(lines, rows, strict=True) if row is None]
    found = {row[1]: row[2].replace("−", "-").split() for row in rows if row}
    assert len(found) == len(lines), "a label is used twice"
    return found


def softmax_and_loss() -> Iterator[tuple[str, list[float]]]:
    logits = np.array([[2.0, 1.0, 0.0]])
    yield "logits", logits[0].tolist()
    for temperature in (0.5, 1, 2):
        p = probabilities(filtered(logits, Sampling(temperature=temperature, top_k=0)))[0]
        yield f"temperature {temperature:g}", p.tolist()
    for p in (1.0, 0.5, 0.1, 0.01, 0.001):
        yield f"p = {p:g}", [-math.log(p)]
    for guess in (0.5, 0.7, 0.9):
        yield f"guess {guess:.0%}", [-(0.7 * math.log(guess) + 0.3 * math.log(1 - guess))]
    for V in (2, 3, 65, 66, 512, 50257):
        yield f"V = {V:,}", [math.log(V), math.log(V) / math.log(2)]
    for loss in (4.1744, 2.4858, 1.6373):
        yield f"{loss} nats", [loss / math.log(2), math.exp(loss)]


def dot_products() -> Iterator[tuple[str, list[float]]]:
    """Of random queries and keys: the standard deviation of q · k, and the largest attention weight without and with the division."""
    draw = np.random.default_rng(1)
    for D in HEADS:
        scores = np.stack([draw.standard_normal(D) @ draw.standard_normal((D, KEYS)) for _ in range(DRAWS)])
        largest = [probabilities(s).max(-1).mean() for s in (scores, scores / math.sqrt(D))]
        yield f"D = {D}", [math.sqrt(D), scores.std(), *largest]


def stream() -> Iterator[tuple[str, list[float]]]:
    for layers in (1, 2, 4):
        yield f"{layers} layers" if layers > 1 else "1 layer", [0.1**layers, 1.1**layers]


def worked_example() -> Iterator[tuple[str, list[float]]]:
    """Forward, backward by autograd, and one step of gradient descent."""
    E = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    kept: dict[str, Tensor] = {}

    def forward(E: Tensor, W: Tensor) -> Tensor:
        x = E[torch.tensor([0, 1])]
        qkv = [x.clone().view(1, 1, 2, 2) for _ in range(3)]
        attention = CausalAttention()
        attention.dropout.register_forward_hook(lambda _, args, weights: kept.update(weights=weights))
        mix = attention(*qkv)
        kept.update(x=x, q=qkv[0], k=qkv[1], v=qkv[2], mix=mix, scores=qkv[0] @ qkv[1].mT / math.sqrt(2))
        kept["y"] = x + mix.view(2, 2)
        kept["logits"] = kept["y"][1] @ W.T
        return F.cross_entropy(kept["logits"], torch.tensor(2))

    loss = forward(E, W)
    for value in kept.values():
        value.retain_grad()
    for name, row in (("embedding", E), ("head", W)):
        yield from ((f"{name} of {token}", row[i].tolist()) for i, token in enumerate("abc"))
    yield "x of a", kept["x"][0].tolist()
    yield "x of b", kept["x"][1].tolist()
    q = kept["q"][0, 0, 1]
    yield "q · k", [(q @ k).item() for k in kept["k"][0, 0]]
    yield "scores", kept["scores"][0, 0, 1].tolist()
    yield "weights", kept["weights"][0, 0, 1].tolist()
    yield "mix", kept["mix"][0, 0, 1].tolist()
    yield "y", kept["y"][1].tolist()
    yield "logits of the example", kept["logits"].tolist()
    yield "probabilities", kept["logits"].softmax(-1).tolist()
    yield "loss", [loss.item()]
    loss.backward()

    def gradient(name: str) -> Tensor:
        grad = kept[name].grad
        assert grad is not None
        return grad

    yield "d logits", gradient("logits").tolist()
    yield from ((f"d head of {token}", W.grad[i].tolist()) for i, token in enumerate("abc"))  # type: ignore[index]
    yield "d y", gradient("y")[1].tolist()
    yield "d mix", gradient("mix")[0, 0, 1].tolist()
    yield "d v of a", gradient("v")[0, 0, 0].tolist()
    yield "d v of b", gradient("v")[0, 0, 1].tolist()
    weights, d_weights = kept["weights"][0, 0, 1], gradient("weights")[0, 0, 1]
    yield "d weights", d_weights.tolist()
    yield "their mean", [(weights * d_weights).sum().item()]
    yield "d scores", (weights * (d_weights - (weights * d_weights).sum())).tolist()
    yield "d q of b", gradient("q")[0, 0, 1].tolist()
    yield "d k of a", gradient("k")[0, 0, 0].tolist()
    yield "d k of b", gradient("k")[0, 0, 1].tolist()
    yield from ((f"d embedding of {token}", E.grad[i].tolist()) for i, token in enumerate("abc"))  # type: ignore[index]
    with torch.no_grad():
        dE, dW = E.grad, W.grad
        new = (E - 0.5 * dE, W - 0.5 * dW)  # type: ignore[operator]
        yield from ((f"new embedding of {token}", new[0][i].tolist()) for i, token in enumerate("abc"))
        yield from ((f"new head of {token}", new[1][i].tolist()) for i, token in enumerate("abc"))
        new_loss = forward(*new).item()
        yield "new probabilities", kept["logits"].softmax(-1).tolist()
        yield "new loss", [new_loss]
        nudged = W.clone()
        nudged[2, 1] += 0.01
        nudged_loss = forward(E, nudged).item()
        yield "nudged loss", [nudged_loss]
        yield "its change", [nudged_loss - loss.item()]
        yield "0.01 × d head", [0.01 * dW[2, 1].item()]  # type: ignore[index]


def test_every_block_of_numbers_is_true() -> None:
    computed = dict(part for make in (softmax_and_loss, dot_products, stream, worked_example) for part in make())
    found = shown()
    assert found.keys() == computed.keys()
    for label, values in found.items():
        assert len(values) == len(computed[label]), label
        for value, true in zip(values, computed[label], strict=True):
            digits = len(value.partition(".")[2])
            assert digits >= 2, f"{label}: {value}"
            assert float(value) == pytest.approx(true, abs=0.5 * 10**-digits + 1e-9), f"{label}: {value} is {true}"


def test_a_number_in_a_sentence_is_one_of_a_block() -> None:
    known = {abs(float(value)) for values in shown().values() for value in values}
    elsewhere = {float(number) for number in re.findall(r"\d+\.\d+", INSIDE)}  # measured, and described there
    numbers = re.findall(r"\d+\.\d+", BLOCKS.sub("", PAGE))
    assert len(numbers) > 20
    for number in numbers:
        if len(number.replace(".", "").lstrip("0")) > 1:  # 0.5 and 0.01 are chosen, not computed
            digits = len(number.partition(".")[2])
            assert any(round(value, digits) == float(number) for value in known) or float(number) in elsewhere, number


def test_the_example_in_torch_prints_the_numbers_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for kind, block in BLOCKS.findall(PAGE) if kind == "python")
    names: dict[str, Tensor] = {}
    exec(compile(code, "theory.md", "exec"), names)
    computed = dict(worked_example())
    assert names["loss"].item() == pytest.approx(computed["loss"][0])
    for name, part in (("E", "embedding"), ("W", "head")):
        gradient = names[name].grad
        assert gradient is not None
        assert gradient.tolist() == [pytest.approx(computed[f"d {part} of {token}"]) for token in "abc"]
    assert "1.128" in capsys.readouterr().out


def test_a_new_model_costs_what_a_uniform_guess_costs() -> None:
    model = build_model(ModernConfig(n_layer=1, n_embd=16, n_head=2, block_size=8), 65, seed=1)
    logits = model(torch.arange(8)[None])[0]
    assert F.cross_entropy(logits[0], torch.arange(8)).item() == pytest.approx(math.log(65))
