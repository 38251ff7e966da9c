"""Checkpoints over time: step-000004.safetensors holds the weights of step 4 and belongs to the run, whatever save is read."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from harness.sabotage import Killed, Saboteur

from minigpt_cli import checkpoints
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.runstore.weights import kept_steps, prune_kept, thinned
from minigpt_cli.verify import verify

from .runs import SETTINGS, problems, save


def keep(run: Run, *steps: int) -> RunRecord:
    """Keep some steps and save after the last of them."""
    record = run.record
    for step in steps:
        record = checkpoints.keep(run, record, step, build_model(SETTINGS.model, 11, seed=step).state_dict())
    return save(run, steps[-1], kept=record.kept)


def test_a_kept_step_is_loaded_as_it_was(run: Run) -> None:
    keep(run, 2, 4, 1_000_000)
    assert kept_steps(run.record) == [2, 4, 1_000_000]
    for step in (2, 4, 1_000_000):
        loaded = checkpoints.load(run, str(step))
        expected = build_model(SETTINGS.model, 11, seed=step).state_dict()
        assert loaded.step == step
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
    assert not problems(run)


def test_an_unknown_step_names_those_that_are_kept(run: Run) -> None:
    save(run, 3)
    with pytest.raises(UsageError, match=r"keeps no checkpoint of step 9: choose best or last .*--keep-every"):
        checkpoints.load(run, "9")
    assert checkpoints.load(run, "3").step == 3  # the best is of this step
    keep(run, 2, 4)
    with pytest.raises(UsageError, match=r"keeps no checkpoint of step 9: choose best, last, 2, 4$"):
        checkpoints.load(run, "9")
    for wrong in ("first", "-1", "2.5", "１"):
        with pytest.raises(UsageError, match="choose best, last or a step"):
            checkpoints.load(run, wrong)


def test_verify_finds_a_damaged_or_missing_step_and_one_that_the_record_does_not_name(run: Run) -> None:
    keep(run, 2, 4, 6)
    for step, damage in ((2, b"x"), (4, None)):
        path = run.file(f"step-00000{step}.safetensors")
        path.unlink()
        if damage:
            path.write_bytes(damage)
    run.file("step-000008.safetensors").write_bytes(b"of a killed process")
    assert problems(run).keys() == {"step-000002.safetensors", "step-000004.safetensors"}
    assert "not in the record" in {finding.file: finding.message for finding in verify(run)}["step-000008.safetensors"]
    assert checkpoints.load(run, "6").step == 6
    with pytest.raises(RunDamaged):
        checkpoints.load(run, "4")


def test_the_save_before_gives_the_steps_that_it_names_and_resuming_from_it_removes_the_others(run: Run) -> None:
    keep(run, 2, 4)
    save(run, 5)
    record = checkpoints.keep(run, run.record, 6, build_model(SETTINGS.model, 11, seed=6).state_dict())
    save(run, 6, kept=record.kept)
    run.file("step-000002.safetensors").unlink()
    run.file("run.json").write_text("{}")
    assert checkpoints.load(Run(run.dir), "4").step == 4
    point = checkpoints.load_resume(run.refresh())
    record = checkpoints.continue_from(run, point, point.record, point.config)
    assert kept_steps(record) == [4]  # 2 is lost, and 6 is after the save
    assert [path.name for path in run.dir.glob("step-*")] == ["step-000004.safetensors"]
    assert not problems(run)


def test_a_reference_names_a_checkpoint_of_a_run(run: Run) -> None:
    keep(run, 2, 4)
    store = RunStore(run.dir.parent)
    found = [store.find(text) for text in ("run@2", "ru@2", "latest@2", f"{run.dir}@2", f"{run.dir}/step-000002.safetensors", "run@0002")]
    assert {(each.dir, each.checkpoint, each.label) for each in found} == {(run.dir, "2", "run@2")}
    assert [each.label for each in store.find_all(["run@2", "r*@2", "run@last", "run", "run@4"])] == ["run@2", "run@last", "run", "run@4"]
    (store.dir / "run@2").mkdir()
    save_as = Run(store.dir / "run@2")
    save_as.write_record(RunRecord(name="run@2"))
    assert store.find("run@2").label == "run@2"
    assert store.find("run@2").dir == save_as.dir  # a run with this name


@pytest.mark.parametrize(
    ("rule", "stay"),
    [
        ({"keep": 0}, []),
        ({"keep": 1}, [12]),
        ({"keep": 3}, [4, 8, 12]),
        ({"keep": 5}, [2, 4, 7, 9, 12]),
        ({"keep": 99}, list(range(1, 13))),
        ({"every": 5}, [5, 10]),
        ({"every": 13}, []),
    ],
)
def test_thinning_spreads_what_stays(rule: dict[str, int], stay: list[int]) -> None:
    assert thinned(range(1, 13), rule.get("keep"), rule.get("every")) == stay


def test_pruning_leaves_best_last_and_resuming_and_keeps_the_place_among_the_runs(run: Run) -> None:
    keep(run, 2, 4, 6, 8)
    before = run.record
    prune_kept(run, 1, None)
    assert kept_steps(run.record) == [8]
    assert [path.name for path in run.dir.glob("step-*")] == ["step-000008.safetensors"]
    assert run.record.model_copy(update={"kept": before.kept}) == before
    assert checkpoints.load_resume(run).notices == []
    assert checkpoints.load(run, "best").step == 8
    assert not problems(run)


@pytest.mark.parametrize("nth", range(9))
def test_pruning_that_is_killed_anywhere_leaves_a_sound_run_and_the_next_finishes_it(run: Run, saboteur: Saboteur, nth: int) -> None:
    keep(run, 2, 4, 6)
    with suppress(Killed), saboteur.strikes(nth, "kill"):
        prune_kept(run, 1, None)
    killed = Run(run.dir)
    assert not problems(killed)
    assert kept_steps(killed.record) in ([2, 4, 6], [6])
    prune_kept(killed, 1, None)
    assert [path.name for path in run.dir.glob("step-*")] == ["step-000006.safetensors"]


HOSTILE_NAMES = [
    "../../outside",
    "run.json",
    "best.safetensors",
    "step-2.safetensors",
    "step-0000000002.safetensors",
    "step-000009.safetensors/",
]


def test_a_record_that_names_other_files_reads_and_removes_none_of_them(run: Run) -> None:
    save(run, 3)
    file = run.record.files["last.safetensors"]
    outside = run.dir.parent.parent / "outside"
    outside.write_text("not ours")
    hostile = run.record.model_copy(update={"kept": dict.fromkeys(HOSTILE_NAMES, file)})
    run.file("run.json").write_text(hostile.to_json())
    run.refresh()
    assert kept_steps(run.record) == []
    for step in ("2", "9"):
        with pytest.raises(UsageError, match="keeps no checkpoint"):
            checkpoints.load(run, step)
    assert problems(run).keys() >= {"run.json", "step-2.safetensors", "step-0000000002.safetensors"}
    prune_kept(run, 0, None)
    assert outside.read_text() == "not ours"
    assert checkpoints.load(run).step == 3
    assert run.record.kept == {}
    assert not problems(run)
