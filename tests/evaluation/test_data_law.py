"""The law of how much text is worth, on losses whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt_cli.evaluation.data_law import fit_data_law

SIZES = [16_000 * 2**i for i in range(7)]
FLOOR, SCALE, EXPONENT = 1.2, 1.5 * 16_000**0.3, 0.3


def losses(rng: np.random.Generator, seeds: int = 3, spread: float = 0.01) -> list[list[np.ndarray]]:
    """Character nats by size and seed: the law, the difficulty of each character, what each size finds hard, and the luck of each seed."""
    text = 0.5 * rng.standard_normal(1000)
    found = []
    for n in SIZES:
        hard = FLOOR + SCALE * n**-EXPONENT + text + 0.1 * rng.standard_normal(1000)
        found.append([hard + spread * rng.standard_normal() + 0.1 * rng.standard_normal(1000) for _ in range(seeds)])
    return found


def test_exact_losses_give_the_exact_law() -> None:
    law = fit_data_law(SIZES, [[np.full(300, FLOOR + SCALE * n**-EXPONENT)] for n in SIZES])
    assert law.exponent.mean == pytest.approx(EXPONENT, rel=0.02)
    assert law.floor.mean == pytest.approx(FLOOR, abs=0.05)
    assert law.at(SIZES[2]) == pytest.approx(FLOOR + SCALE * SIZES[2] ** -EXPONENT, abs=0.002)
    assert law.doubled.mean == pytest.approx(SCALE * SIZES[-1] ** -EXPONENT * (2**-EXPONENT - 1), rel=0.02)
    assert law.misfit < 0.002


def test_intervals_hold_the_known_law_in_95_percent_of_cases() -> None:
    rng, rounds = np.random.default_rng(5), 200
    doubled = SCALE * SIZES[-1] ** -EXPONENT * (2**-EXPONENT - 1)
    hits = np.zeros(3)
    for seed in range(rounds):
        law = fit_data_law(SIZES, losses(rng), resamples=200, seed=seed)
        truth = ((law.exponent, EXPONENT), (law.floor, FLOOR), (law.doubled, doubled))
        hits += [value.low <= true <= value.high for value, true in truth]
    error = 100 * np.sqrt(0.95 * 0.05 / rounds)  # of the percentage
    assert (np.abs(100 * hits / rounds - 95) < 2.6 * error).all(), hits / rounds


def test_losses_that_follow_no_power_law_are_said_to_miss_it() -> None:
    noise = np.random.default_rng(1).standard_normal((3, 500)) * 0.01
    bent = [[1.0 + (i % 2) * 0.3 + row for row in noise] for i in range(len(SIZES))]
    law = fit_data_law(SIZES, bent)
    assert law.misfit > 10 * law.noise


def test_one_seed_each_has_the_uncertainty_of_the_text_alone() -> None:
    one, three = (fit_data_law(SIZES, losses(np.random.default_rng(2), seeds)) for seeds in (1, 3))
    assert one.exponent.low < one.exponent.mean < one.exponent.high
    assert one.exponent.high - one.exponent.low < three.exponent.high - three.exponent.low


def test_three_sizes_are_too_few_for_three_numbers() -> None:
    with pytest.raises(ValueError, match="four sizes"):
        fit_data_law(SIZES[:3], losses(np.random.default_rng(1))[:3])
