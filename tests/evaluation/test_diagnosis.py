"""The rules of `runs diagnose`, on recorded runs with known faults and on symptoms that are written down here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from benchmarks import doctor

from minigpt_cli.evaluation.diagnosis import RULES, Symptoms, diagnose, to_json, too_little_to_say

STEPS = list(range(20, 220, 20))
SLOW = [2.9, 2.8, 2.7, 2.6, 2.6, 2.5, 2.5, 2.5, 2.5, 2.5]
HEALTHY = Symptoms(
    stop_reason="max_steps",
    stop_step=200,
    max_steps=200,
    uniform=4.2,
    train=[2.8, 2.5, 2.3, 2.1, 2.0, 1.9, 1.85, 1.8, 1.77, 1.75],
    val=[2.9, 2.6, 2.4, 2.2, 2.1, 2.0, 1.95, 1.9, 1.87, 1.85],
    steps=STEPS,
    epochs=[step / 150 for step in STEPS],
    rate=1.0,
    tokens_per_param=1.2,
    leak=0.0,
    noise=0.03,
    measured=15_000,
    pairs=2.45,
    xz=0.75,
    context=0.55,
    block_size=64,
    least_expert=None,
)
UNKNOWN = replace(HEALTHY, train=[], val=[], steps=[], epochs=[], leak=None, noise=None, pairs=None, xz=None, context=None)
FAULTY: dict[str, dict[str, Any]] = {
    "diverged": {"stop_reason": "diverged"},
    "leak between splits": {"leak": 0.8},
    "evaluation too noisy": {"noise": 0.4, "measured": 512},
    "rate too high": {"train": [2.8, 2.5, 3.5, 4.1, 3.9, 3.5, 3.2, 3.0, 2.9, 2.9]},
    "rate too low or stopped early": {"rate": 0.01, "train": [4.1, 4.0, 3.9, 3.9, 3.8, 3.8, 3.7, 3.7, 3.6, 3.6]},
    "validation unlike training": {"val": [3.4, 3.1, 2.9, 2.7, 2.6, 2.5, 2.5, 2.4, 2.4, 2.3]},
    "too little text": {
        "epochs": [step / 2 for step in STEPS],
        "val": [2.9, 2.6, 2.7, 2.9, 3.1, 3.3, 3.5, 3.7, 3.9, 4.1],
        "tokens_per_param": 0.01,
    },
    "overfitting": {"val": [2.9, 2.6, 2.4, 2.2, 2.1, 2.0, 2.05, 2.1, 2.2, 2.3], "tokens_per_param": 0.4},
    "context unused": {"context": 0.01, "train": SLOW, "val": SLOW},
    "dead experts": {"least_expert": 0.01},
}


@pytest.fixture(scope="module")
def known() -> doctor.Known:
    return doctor.read_cases()


def test_a_healthy_run_has_no_finding() -> None:
    assert diagnose(HEALTHY) == []
    assert too_little_to_say(HEALTHY) == ""


@pytest.mark.parametrize("fault", RULES)
def test_each_fault_is_found_and_its_evidence_has_a_figure(fault: str) -> None:
    found = diagnose(replace(HEALTHY, **FAULTY[fault]))
    assert [finding.finding for finding in found] == [fault]
    assert "\n" not in found[0].evidence
    assert any(character.isdigit() for character in found[0].evidence) or fault == "diverged"


@pytest.mark.parametrize("few", [0, 1, 2])
def test_what_is_not_known_is_no_fault(few: int) -> None:
    shown = replace(UNKNOWN, train=HEALTHY.train[:few], val=HEALTHY.val[:few], steps=STEPS[:few], epochs=HEALTHY.epochs[:few])
    assert diagnose(shown) == []
    assert "too few" in too_little_to_say(shown)


def test_a_gap_within_the_noise_of_an_evaluation_is_noise() -> None:
    far = replace(HEALTHY, **FAULTY["validation unlike training"])
    assert [finding.finding for finding in diagnose(replace(far, noise=0.3))][:1] == ["validation unlike training"]
    assert [finding.finding for finding in diagnose(replace(far, noise=0.9))] == ["evaluation too noisy"]


def test_a_run_that_blew_up_and_came_back_has_diverged() -> None:
    blown: list[float | None] = [240.0, 170.0, 90.0, 50.0, 40.0, 30.0, 20.0, 10.0, 5.0, 3.9]
    assert [finding.finding for finding in diagnose(replace(HEALTHY, train=blown, val=blown))] == ["diverged"]


def test_xz_tells_nothing_of_a_few_lines() -> None:
    assert [finding.finding for finding in diagnose(replace(HEALTHY, xz=0.01))] == ["leak between splits"]
    assert [finding.finding for finding in diagnose(replace(HEALTHY, xz=0.3, noise=0.2))] == ["evaluation too noisy"]


def test_losses_that_were_not_finite_are_passed_over() -> None:
    losses: list[float | None] = [None, *HEALTHY.train[1:-1], None]
    assert diagnose(replace(HEALTHY, train=losses, val=losses)) == []


def test_a_run_that_ended_early_while_its_loss_fell_is_told_so() -> None:
    steep: list[float | None] = [3.0, 2.7, 2.5, 2.3]
    shown = replace(HEALTHY, stop_reason="time_limit", stop_step=80, train=steep, val=steep, steps=STEPS[:4], epochs=HEALTHY.epochs[:4])
    assert [finding.finding for finding in diagnose(shown)] == ["rate too low or stopped early"]
    assert diagnose(replace(shown, stop_reason="target_loss")) == []


def test_thresholds_and_hit_rates_are_those_of_the_recorded_cases(known: doctor.Known) -> None:
    assert doctor.verdict(known) == json.loads(doctor.PACKAGED.read_text(encoding="utf-8"))


def test_nine_in_ten_faults_are_named_and_one_in_twenty_healthy_runs_is_blamed(known: doctor.Known) -> None:
    found = doctor.report(known)
    right, of = (sum(column) for column in zip(*found["named"].values(), strict=True))
    assert right >= 0.9 * of
    assert found["blamed"][0] <= 0.05 * found["blamed"][1]
    assert found["blamed"][1] >= 5


def test_the_recorded_cases_are_small_and_exactly_what_is_read(known: doctor.Known) -> None:
    assert doctor.KEPT.stat().st_size <= 150_000
    assert {fault for _, fault, _ in known} == {*RULES, "healthy"}
    rows = [json.loads(line) for line in doctor.KEPT.read_text(encoding="utf-8").splitlines()]
    assert [to_json(shown) for _, _, shown in known] == [row["symptoms"] for row in rows]
