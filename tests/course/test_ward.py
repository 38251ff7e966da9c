"""The ward: recorded runs that show what they have without saying it, drawn without repeats, and one trained on a text of one's own."""

from __future__ import annotations

from collections import Counter
from contextlib import redirect_stdout
from importlib.resources import files
from io import StringIO
from pathlib import Path

import pytest
from harness import tiny

from minigpt_cli.cli import run as minigpt
from minigpt_cli.course.ward import HEALTHY, KINDS, OWN_FAULTS, Case, case_of, draw, own_training, pool, summary
from minigpt_cli.evaluation.diagnosis import RULES
from minigpt_cli.runstore.store import RunStore


def test_the_pool_has_two_cases_of_every_kind_that_diagnose_knows() -> None:
    kinds = Counter(case.answer for case in pool())
    assert set(kinds) == set(KINDS) == {*RULES, HEALTHY}
    assert min(kinds.values()) >= 2
    assert len({case.name for case in pool()}) == len(pool())
    assert (files("minigpt_cli.course") / "cases.jsonl").stat().st_size <= 150_000  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", pool(), ids=lambda case: case.name)
def test_a_case_fits_on_a_screen_and_does_not_name_what_it_has(case: Case) -> None:
    assert 8 <= len(case.screen) <= 10
    assert max(map(len, case.screen)) <= 78
    shown = "\n".join(case.screen).lower()
    assert case.answer not in shown
    assert KINDS[case.answer].label not in shown
    ids = [option.id for option in case.options]
    assert len(set(ids)) == 4
    assert case.answer in ids
    assert ids[-1] == HEALTHY
    assert {option.text for option in case.options} <= {kind.label for kind in KINDS.values()}
    assert not set(ids) & set(case.others)  # only one answer is right
    assert KINDS[case.answer].label in case.explanation[0].lower()
    assert bool(case.mend) == bool(case.evidence) == (case.answer != HEALTHY)
    assert case.mend.startswith("minigpt train") or case.answer == HEALTHY
    assert "/" not in case.mend  # no folder of another machine


def test_the_right_answer_has_no_place_of_its_own() -> None:
    places = Counter([option.id for option in case.options].index(case.answer) for case in pool() if case.answer != HEALTHY)
    assert all(places[place] >= 5 for place in range(3))


@pytest.mark.parametrize("seed", range(5))
def test_cases_are_drawn_once_and_each_kind_before_any_comes_twice(seed: int) -> None:
    before, after = draw(seed, 2), draw(seed, 3, after=2)
    assert [*before, *after] == draw(seed, 5)
    assert len({case.answer for case in draw(seed, len(KINDS))}) == len(KINDS)
    whole = draw(seed, len(pool()))
    assert sorted(case.name for case in whole) == sorted(case.name for case in pool())


def test_draws_of_different_learners_differ() -> None:
    assert len({tuple(case.name for case in draw(seed, 2)) for seed in range(20)}) > 10


def test_a_single_learner_is_told_that_few_cases_say_little() -> None:
    said = summary([True, False], [True, True, True, False])
    assert "1 of 2 cases before" in said
    assert "3 of 4 after" in said
    assert "Six cases are too few to say whether you learned." in said
    assert "11 cases are too few" in summary([True] * 5, [False] * 6)


def test_the_training_of_a_case_of_ones_own_is_drawn_by_the_seed() -> None:
    drawn = [own_training(seed, "my text.txt") for seed in range(30)]
    assert {fault for fault, _ in drawn} == set(OWN_FAULTS)
    assert all(argv[:2] == ["train", "my text.txt"] and "--json" in argv for _, argv in drawn)
    assert own_training(0, None)[1][1].startswith("--")


def test_a_run_that_was_made_sick_is_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "own.txt").write_text(tiny.text(4000))
    argv = ["train", str(tmp_path / "own.txt"), *tiny.training(100, 10), "--optimizer", "adamw", "--lr", "1", "--seed", "3", "--json"]
    with redirect_stdout(StringIO()):
        assert minigpt([*argv, "--name", "sick"]) in (0, 3)
    found = case_of(RunStore(tmp_path / "runs").find("sick"), "rate too high")
    assert found.answer in ("rate too high", "diverged")
    assert found.evidence
    assert found.screen[0].startswith("text       own.txt: training 3,600 characters")
    assert "--lr" in found.mend
    assert len(found.screen) <= 10
    assert 2 <= len(found.curve) <= 6
    assert found.answer in [option.id for option in found.options]
    assert case_of(RunStore(tmp_path / "runs").find("sick"), "dead experts").answer in (
        found.answer,
        *found.others,
    )  # what was measured counts
