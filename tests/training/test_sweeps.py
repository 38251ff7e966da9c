"""The runs of a sweep, and the trials of a search."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.runstore.store import check_name
from minigpt_cli.training.sweeps import Space, Study, Trial, grid, group_name, parse_choices, parse_space, run_name


def test_grid_is_every_combination_once_with_every_seed() -> None:
    trials = grid([parse_choices("lr=1e-4,3e-4"), parse_choices("dropout=0.1,0.2")], range(5, 8))
    assert len(trials) == len({trial.name for trial in trials}) == 12
    assert {tuple(trial.settings.values()) for trial in trials} == {
        (lr, dropout, seed) for lr in ("1e-4", "3e-4") for dropout in ("0.1", "0.2") for seed in ("5", "6", "7")
    }
    assert [trial.settings["seed"] for trial in trials[:3]] == ["5", "6", "7"]


@pytest.mark.parametrize("text", ["", "lr", "lr=", "=1", "lr=,", " =1"])
def test_a_sweep_without_setting_or_values_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--sweep"):
        parse_choices(text)


def test_setting_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="lr twice"):
        grid([Space("lr", choices=("1",)), Space("lr", choices=("2",))], [1])
    with pytest.raises(UsageError, match="both vary the seed"):
        grid([Space("seed", choices=("1", "2"))], [1, 2])
    with pytest.raises(UsageError, match="more than"):
        grid([Space("lr", choices=tuple(map(str, range(200)))), Space("beta1", choices=tuple(map(str, range(200))))], [1])


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("lr=1e-5..1e-2:log", Space("lr", 1e-5, 1e-2, log=True)),
        ("n-layer=2..6", Space("n_layer", 2.0, 6.0)),
        ("optimizer=adamw,muon", Space("optimizer", choices=("adamw", "muon"))),
    ],
)
def test_space_is_read_as_written(text: str, space: Space) -> None:
    assert parse_space(text) == space


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=2..1", "lr=0..1:log", "lr=nan..1", "lr=a..b", "=1..2"])
def test_a_malformed_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--search"):
        parse_space(text)


@given(st.text(max_size=200))
def test_any_trial_gives_a_valid_run_name(trial: str) -> None:
    assert check_name(run_name("sweep-abcdef", trial))


def test_same_sweep_has_the_same_group() -> None:
    assert group_name("sweep", {"lr": 1.0}, ["a"]) == group_name("sweep", {"lr": 1.0}, ["a"])
    assert group_name("sweep", {"lr": 1.0}, ["a"]) != group_name("sweep", {"lr": 2.0}, ["a"])
    assert re.fullmatch(r"sweep-[0-9a-f]{6}", group_name("sweep"))


SPACES = ["lr=1e-4..1e-2:log", "n_layer=2..6", "optimizer=adamw,muon"]


def study(folder: Path) -> Study:
    """What a process that searches opens."""
    pytest.importorskip("optuna")
    return Study(folder / "study.journal", [parse_space(text) for text in SPACES], ["n_layer"], 1)


def asked(offered: tuple[Any, Trial] | None) -> tuple[Any, Trial]:
    assert offered is not None
    return offered


def test_processes_share_a_study_until_it_has_the_requested_trials(tmp_path: Path) -> None:
    first, second = study(tmp_path), study(tmp_path)
    one, trial = asked(first.ask(2))
    assert 1e-4 <= float(trial.settings["lr"]) <= 1e-2
    assert 2 <= int(trial.settings["n_layer"]) <= 6
    assert trial.settings["optimizer"] in ("adamw", "muon")
    other, _ = asked(second.ask(2))
    assert (one.number, other.number) == (0, 1)
    assert first.ask(2) is None
    second.tell(other, None)
    again, _ = asked(second.ask(2))
    assert again.number == 2, "a failed trial is replaced"
    second.tell(again, 1.5)
    first.tell(one, 1.0)
    assert first.ask(2) is second.ask(2) is None
    assert first.scores() == {"t0": 1.0, "t2": 1.5}
    assert not list(tmp_path.glob("*.t*.lock"))


@pytest.mark.parametrize("content", ['{"broken\n', "[]\n", "1\n", '{"op_code": 4, "study_id": 7}\n'])
def test_a_damaged_journal_is_an_error_in_one_line(content: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "study.journal").write_text(content)
    with pytest.raises(MiniGPTError, match="is damaged") as caught:
        Study(tmp_path / "study.journal", [Space("lr", 1e-4, 1e-2)], [], 1)
    assert "\n" not in str(caught.value)
