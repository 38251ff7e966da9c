"""minigpt train --seeds auto: seeds until recipes are told apart, with a verdict that counts the looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.evaluation import comparison, seeds
from minigpt_cli.runstore.store import RunStore


@pytest.fixture
def desk(home: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (home / "text.txt").write_text(text)
    for module in ("minigpt_cli.commands.seeds_auto", "minigpt_cli.evaluation.seeds"):
        monkeypatch.setattr(f"{module}.LOOKS", (2, 3))
    return home


def test_clear_recipes_are_told_apart_at_the_first_look(cli: Any, tiny: list[str], desk: Path) -> None:
    done = cli("train", "text.txt", *tiny, "--max-steps", "30", "--sweep", "lr=1e-5,3e-2", "--seeds", "auto", "--name", "g",
               "--optimizer", "adamw")  # fmt: skip
    assert done.code == 0, done.err
    assert len(RunStore().runs()) == 4
    assert "lr 0.03 is better than lr 1e-05" in done.out
    assert "p is multiplied by 2" in done.out


def test_recipes_that_differ_in_nothing_get_all_seeds_and_the_same_command_goes_on(cli: Any, tiny: list[str], desk: Path) -> None:
    command = ["train", "text.txt", *tiny, "--sweep", "save_every=0,3", "--seeds", "auto", "--name", "g"]
    done = cli(*command)
    assert done.code == 0, done.err
    assert len(RunStore().runs()) == 6
    assert "2 seeds of each do not tell" in done.err
    assert "indistinguishable" in done.out
    before = {run.name: run.record.updated_at for run in RunStore().runs()}
    assert cli(*command).code == 0
    assert {run.name: run.record.updated_at for run in RunStore().runs()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "auto"], "name them, as in --sweep"),
        (["--seeds", "auto", "--sweep", "seed=1,2"], "both vary the seed"),
        (["--seeds", "auto", "--sweep", "lr=1e-3,1e-2", "--jobs", "2"], "leave out --jobs"),
        (["--seeds", "some"], "--seeds some: give a number of seeds"),
        (["--seeds", "0"], "--seeds 0: give a number of seeds"),
    ],
)
def test_what_auto_cannot_do_is_said_before_training(cli: Any, tiny: list[str], desk: Path, flags: list[str], message: str) -> None:
    done = cli("train", "text.txt", *tiny, *flags)
    assert done.code == 2
    assert message in done.err
    assert not Path("runs").exists()


def test_a_verdict_counts_the_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from minigpt_cli.evaluation.statistics import Estimate

    assert len(seeds.LOOKS) == 5
    side = comparison.Side("a", ())
    monkeypatch.setattr(comparison, "check_same_text", lambda sides: None)
    monkeypatch.setattr(comparison, "_test", lambda a, b: (Estimate(-0.1, -0.15, -0.05, 0.02, 0.02, 1), None))
    monkeypatch.setattr(comparison, "_question", lambda a, b: "recipes")
    assert comparison.compare_pairs([side, replace(side, name="b")])[0].verdict == "a_better"
    [pair] = comparison.compare_pairs([side, replace(side, name="b")], looks=5)
    assert (pair.verdict, pair.p_holm) == ("indistinguishable", pytest.approx(0.1))
