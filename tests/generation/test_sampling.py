"""Sampling against hand-computed four-token distributions, and draws against their probabilities by chi-square."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from minigpt_cli.errors import UsageError
from minigpt_cli.generation.sampling import (
    STYLES,
    Sampling,
    choose,
    draw,
    filtered,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    nats,
    penalise_repetition,
    probabilities,
    style,
    with_setting,
)

P = np.array([[0.1, 0.2, 0.3, 0.4]])
ALL = Sampling(temperature=1, top_k=0)


def kept(logits: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isfinite(logits[0])).tolist()


def test_temperature_raises_probabilities_to_its_inverse() -> None:
    for temperature in (0.5, 2.0):
        expected = P ** (1 / temperature) / (P ** (1 / temperature)).sum()
        np.testing.assert_allclose(probabilities(filtered(np.log(P), replace(ALL, temperature=temperature))), expected, rtol=1e-12)


def test_top_k_keeps_the_k_largest_and_ties_of_the_last() -> None:
    assert [kept(keep_top_k(np.log(P), k)) for k in (1, 2, 3, 4, 5, 0)] == [
        [3],
        [2, 3],
        [1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    assert kept(keep_top_k(np.array([[1.0, 2.0, 2.0, 3.0]]), 2)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("p", "expected"), [(0.05, [3]), (0.4, [3]), (0.41, [2, 3]), (0.7, [2, 3]), (0.75, [1, 2, 3]), (0.95, [0, 1, 2, 3]), (1, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, expected: list[int]) -> None:
    exact = np.log(np.array([[1, 2, 3, 4]]) / 10)
    assert kept(keep_top_p(exact, p - 1e-12 if p < 1 else p)) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.0, [0, 1, 2, 3]), (0.3, [1, 2, 3]), (0.6, [2, 3]), (0.9, [3]), (1.0, [3])])
def test_min_p_keeps_what_is_probable_enough_beside_the_first(p: float, expected: list[int]) -> None:
    assert kept(keep_min_p(np.log(P), p)) == expected


def test_repetition_penalty_makes_seen_tokens_less_probable_with_either_sign() -> None:
    logits, seen = np.array([[2.0, -2.0, 2.0, -2.0]]), np.array([[True, True, False, False]])
    np.testing.assert_array_equal(penalise_repetition(logits, seen, 2.0), [[1.0, -4.0, 2.0, -2.0]])


def test_settings_apply_in_the_documented_order() -> None:
    """Top-p sees what temperature and top-k left: at temperature 0.5 of two tokens the first alone reaches 0.6."""
    setting = Sampling(temperature=0.5, top_k=2, top_p=0.6)
    assert kept(filtered(np.log(P), setting)) == [3]  # 0.16 / (0.16 + 0.09) = 0.64
    assert kept(filtered(np.log(P), replace(setting, temperature=1))) == [2, 3]  # 0.4 / 0.7 = 0.57


def test_agrees_with_hugging_face_warpers() -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from transformers.generation import logits_process as hf

    assert transformers
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 40)) * 3
    chain = (hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(12), hf.TopPLogitsWarper(0.9), hf.MinPLogitsWarper(0.05))
    expected = torch.from_numpy(logits)
    for warper in chain:
        expected = warper(None, expected)
    ours = filtered(logits, Sampling(temperature=0.7, top_k=12, top_p=0.9, min_p=0.05))
    np.testing.assert_allclose(probabilities(ours), expected.softmax(-1).numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "sampling",
    [ALL, Sampling(), Sampling(temperature=1.3, top_k=3), Sampling(temperature=1, top_k=0, top_p=0.8), Sampling(temperature=2, min_p=0.4)],
)
def test_draws_follow_the_probabilities(sampling: Sampling) -> None:
    """Pearson's chi-square of 100,000 draws stays below its 99.99 % quantile (16.3, 18.4, 21.1 for 1 to 3 degrees of freedom)."""
    n = 100_000
    logits = filtered(np.log(P), sampling)
    ids, _ = draw(np.repeat(logits, n, 0), np.random.default_rng(7).random(n))
    expected = probabilities(logits)[0] * n
    counts = np.bincount(ids, minlength=4)
    assert (counts[expected == 0] == 0).all()
    live = expected > 0
    statistic = ((counts[live] - expected[live]) ** 2 / expected[live]).sum()
    assert statistic < {0: 1e-9, 1: 16.3, 2: 18.4, 3: 21.1}[int(live.sum()) - 1]


@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_a_token_of_no_probability_is_never_drawn(uniform: float) -> None:
    logits = np.array([[-np.inf, 0.0, -np.inf, 0.0, -np.inf]])
    assert draw(logits, np.array([uniform]))[0][0] in (1, 3)


def test_a_row_is_drawn_the_same_alone_and_in_a_batch() -> None:
    rng = np.random.default_rng(3)
    logits, uniforms = rng.normal(size=(16, 65)).astype(np.float32) * 4, rng.random(16)
    sampling = Sampling(top_k=20, top_p=0.95, min_p=0.01)
    together = choose(logits, sampling, uniforms)[0]
    assert together.tolist() == [int(choose(logits[i : i + 1], sampling, uniforms[i : i + 1])[0][0]) for i in range(16)]


def test_greedy_takes_the_most_probable_and_returns_its_margin() -> None:
    ids, margins = choose(np.array([[1.0, 3.0, 2.5], [5.0, 0.0, 0.0]]), Sampling(temperature=0), np.zeros(2))
    assert ids.tolist() == [1, 0]
    np.testing.assert_allclose(margins, [0.5, 5.0])


def test_a_tiny_temperature_is_greedy_and_overflows_nothing() -> None:
    logits = np.array([[1e4, -1e4, 9.99e3]])
    assert draw(filtered(logits, replace(ALL, temperature=1e-300)), np.array([0.999]))[0][0] == 0


def test_nats_are_those_of_the_bare_model() -> None:
    np.testing.assert_allclose(nats(np.log(P) + 5, np.array([2])), [-math.log(0.3)])


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
     {"top_p": math.nan}, {"min_p": -0.1}, {"min_p": 2}, {"repetition_penalty": 0},
     {"repetition_penalty": math.nan}, {"repetition_penalty": 1e-320},
     {"repetition_penalty": 1e300}],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--" + next(iter(wrong)).replace("_", "-")):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_styles_are_the_documented_ones() -> None:
    assert {name: (s.temperature, s.top_k) for name, s in STYLES.items()} == {
        "conservative": (0.5, 10), "default": (0.9, 50), "creative": (1.2, 100),
    }  # fmt: skip
    assert style("default") == style("balanced") == Sampling()
    with pytest.raises(UsageError, match="did you mean 'creative'"):
        style("creativ")


def test_settings_by_name() -> None:
    assert with_setting(Sampling(), "top-k", "7").top_k == 7
    assert with_setting(Sampling(), "temperature", "0.3") == Sampling(temperature=0.3)
    for name, text in (("temprature", "1"), ("top_k", "1.5"), ("top_p", "x"), ("temperature", "-1")):
        with pytest.raises(UsageError):
            with_setting(Sampling(), name, text)
