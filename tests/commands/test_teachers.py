"""train --teachers, as typed: what is trained first, what is learned from it, and how it goes on after an interruption."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.commands.diagnose import sure_finding
from minigpt_cli.commands.teaching import teacher_config
from minigpt_cli.config import RunConfig
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.training.state import TrainingState
from minigpt_cli.verify import verify

SHAPE = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "8", "--batch-size", "4"]
SMALL = [*SHAPE, "--max-steps", "12", "--eval-every", "4"]
EXACT = ["--device", "cpu", "--precision", "fp32", "--attention", "plain", "--compile", "off", "--threads", "1", "--seed", "5"]
TEXT = "the cat sat on a mat and ran to the sea; " * 40


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return RunStore()


def train(name: str, *flags: str) -> int:
    return minigpt(["train", "text.txt", "--name", name, *SMALL, *EXACT, *flags])


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process the signal that ends a training once it has taken so many steps, of whatever model."""
    taken, step = [0], TrainingState.step

    def counted(self: TrainingState, *arguments: object) -> object:
        taken[0] += 1
        if taken[0] == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingState, "step", counted)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return checkpoints.load_tensors(run.file("best.safetensors"))


def test_each_teacher_is_a_run_in_the_folder_of_the_one_that_learns_from_it(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("taught", "--teachers", "2") == 0
    run = store.find("taught")
    teacher, first = Run(run.file("teacher")), Run(run.file("teacher") / "teacher")
    assert [r.config.distil.teachers for r in (run, teacher, first)] == [2, 1, 0]
    assert len({r.config.seed for r in (run, teacher, first)}) == 3
    for learner, taught_by in ((run, teacher), (teacher, first)):
        assert learner.record.teacher is not None
        assert learner.record.teacher.sha256 == taught_by.record.files["best.safetensors"].sha256
        assert taught_by.record.status == "finished"
        assert not [finding for finding in verify(taught_by) if finding.level == "problem"]
    assert not first.file("teacher").exists()
    assert [r.record.tokens_seen for r in (first, teacher, run)] == [n * 12 * 4 * 8 for n in (1, 2, 3)]
    assert first.record.elapsed_s < teacher.record.elapsed_s < run.record.elapsed_s
    assert [r.name for r in store.runs()] == ["taught"]
    assert minigpt(["runs", "show", "taught"]) == 0
    assert "teachers of 12 and 12 steps" in capsys.readouterr().out
    assert store.find("taught/teacher/teacher").record.name == first.name == "taught/teacher/teacher"
    assert minigpt(["compare", "taught", "taught/teacher", "taught/teacher/teacher"]) == 0
    assert minigpt(["generate", "taught/teacher", "--max-new-tokens", "5"]) == 0


def test_a_teacher_that_learned_more_is_named_at_the_end(store: RunStore) -> None:
    assert train("taught", "--teachers", "1") == 0
    run, teacher = store.find("taught"), store.find("taught/teacher")
    for score in (0.5, 9.0):
        best = teacher.record.best
        assert best is not None
        teacher.write_record(teacher.record.model_copy(update={"best": best.model_copy(update={"nats_per_char": score})}))
        assert ("its teacher has 0.5000" in sure_finding(run)) == (score == 0.5)
        assert ("minigpt compare taught/teacher taught" in sure_finding(run)) == (score == 0.5)
        teacher = teacher.refresh()


def test_a_run_with_a_teacher_learns_something_else_than_without(store: RunStore) -> None:
    assert train("alone") == train("ignoring", "--teachers", "1", "--teacher-share", "0") == train("taught", "--teachers", "1") == 0
    alone, ignoring, taught = (weights(store.find(name)) for name in ("alone", "ignoring", "taught"))
    assert all(torch.allclose(alone[n], ignoring[n], atol=1e-5) for n in alone)
    assert not all(torch.allclose(alone[n], taught[n], atol=1e-3) for n in alone)


@pytest.mark.parametrize("steps", [3, 15, 30], ids=["in the first teacher", "in the second", "in the run"])
def test_wherever_it_is_stopped_it_goes_on_to_the_bit(
    steps: int, store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("whole", "--teachers", "2") == 0
    with monkeypatch.context() as patch:
        stop_after(steps, patch)
        assert train("stopped", "--teachers", "2") == 143
    assert store.find("stopped").record.status == "interrupted"
    said = capsys.readouterr().out
    assert "minigpt train --resume stopped" in said
    assert ("while its teacher was trained" in said) == (steps < 24)
    assert minigpt(["train", "--resume", "stopped"]) == 0
    whole, stopped = (weights(store.find(name)) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[n], stopped[n]) for n in whole)
    assert store.find("stopped").record.best == store.find("whole").record.best


def test_a_run_goes_on_only_with_the_teacher_that_it_began_with(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("other", "--teachers", "1", "--seed", "6") == 0
    with monkeypatch.context() as patch:
        stop_after(20, patch)
        assert train("stopped", "--teachers", "1") == 143
    folder = store.find("stopped").file("teacher")
    shutil.rmtree(folder)
    assert minigpt(["train", "--resume", "stopped"]) == 1
    assert f"{folder} is missing" in capsys.readouterr().err
    shutil.copytree(store.find("other").file("teacher"), folder)
    assert minigpt(["train", "--resume", "stopped"]) == 1
    assert "is not the one that run 'stopped' began with" in capsys.readouterr().err


def test_settings_cannot_change_before_the_teachers_are_finished(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert train("stopped", "--teachers", "1") == 143
    assert minigpt(["train", "--resume", "stopped", "--max-steps", "30"]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_a_sweep_trains_the_teachers_of_each_run_and_goes_on_after_an_interruption(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "text.txt", "--name", "swept", *SMALL, *EXACT, "--teachers", "1", "--sweep", "teacher_share=0.5,0.9"]
    with monkeypatch.context() as patch:
        stop_after(30, patch)  # in the teacher of the second run
        assert minigpt(command) == 143
    kept = Run(store.dir / "swept~teacher_share=0.9" / "teacher").record.created_at
    assert minigpt(command) == 0
    runs = store.runs()
    assert [run.config.distil.teacher_share for run in runs] == [0.5, 0.9]
    assert all(run.record.status == "finished" and run.record.group == "swept" for run in runs)
    assert Run(runs[1].file("teacher")).record.created_at == kept


@pytest.mark.parametrize(("flags", "said"), [(["--init-from", "alone"], "--init-from"), (["--fsdp"], "--fsdp")])
def test_what_does_not_go_together_is_refused(flags: list[str], said: str, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("alone") == 0
    assert train("refused", "--teachers", "1", *flags) == 2
    assert said in capsys.readouterr().err
    assert not (store.dir / "refused").exists()


def test_a_run_with_teachers_is_repeated_to_the_bit_from_its_configuration(store: RunStore) -> None:
    assert minigpt(["train", "text.txt", "--name", "first", *SHAPE, *EXACT, "--time-budget", "6s", "--teachers", "2"]) == 0
    first = store.find("first")
    steps = [Run(first.dir / "teacher" / "teacher").config.optim.max_steps, Run(first.dir / "teacher").config.optim.max_steps]
    assert [int(teacher.split(":")[0]) for teacher in first.config.distil.taught_by.split(";")] == steps
    assert minigpt(["train", "--config", "runs/first/config.json", "--name", "again"]) == 0
    ours, theirs = weights(first), weights(store.find("again"))
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert store.find("again").config == first.config
    assert minigpt(["train", "--config", "runs/first/config.json", "--name", "other", "--teachers", "1", "--max-steps", "8"]) == 0
    assert store.find("other").config.distil.taught_by.startswith("8:")


@pytest.mark.parametrize("steps", [2, 14, 26], ids=["the first teacher", "the second", "the run"])
def test_what_is_killed_before_its_first_save_goes_on(steps: int, store: RunStore) -> None:
    killed = "import os, signal, sys\nfrom minigpt_cli.training.state import TrainingState\ntaken, step = [0], TrainingState.step\n"
    killed += "def counted(self, *arguments):\n    taken[0] += 1\n"
    killed += f"    if taken[0] == {steps}: os.kill(os.getpid(), signal.SIGKILL)\n    return step(self, *arguments)\n"
    killed += "TrainingState.step = counted\nfrom minigpt_cli.cli import run\nrun(sys.argv[1:])"
    command = [sys.executable, "-c", killed, "train", "text.txt", "--name", "killed", *SMALL, *EXACT, "--teachers", "2"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert minigpt(["train", "--resume", "killed"]) == 0
    assert train("whole", "--teachers", "2") == 0
    whole, ours = (weights(store.find(name)) for name in ("whole", "killed"))
    assert all(torch.equal(whole[n], ours[n]) for n in whole)


def test_a_run_does_not_begin_while_its_teacher_is_unfinished(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_cli.display.live_training import PlainLines

    def closed(self: PlainLines, event: object) -> None:
        raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(PlainLines, "show", closed)
        assert train("piped", "--teachers", "1") == 0
    run = store.find("piped")
    assert run.record.status == "interrupted"
    assert not run.record.files
    assert run.record.teacher is None
    assert minigpt(["train", "--resume", "piped"]) == 0
    assert Run(run.file("teacher")).record.stop_step == 12


def test_no_two_models_of_a_chain_have_the_same_seed() -> None:
    config, seeds = RunConfig.model_validate({"distil": {"teachers": 8}}), []
    for _ in range(9):
        seeds.append(config.seed)
        config = teacher_config(config) if config.distil.teachers else config
    assert len(set(seeds)) == 9


def test_a_teacher_has_its_share_of_the_time_that_is_left() -> None:
    config = RunConfig.model_validate({"distil": {"teachers": 2}, "optim": {"time_budget": 20.0}})
    first = teacher_config(config, 6.0)
    assert first.optim.time_budget == pytest.approx(0.45 * 14)
    assert teacher_config(first).optim.time_budget == pytest.approx(0.45 * 0.45 * 14)


def test_a_teacher_that_was_changed_on_the_disk_is_not_learned_from(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(17, patch)
        assert train("stopped", "--teachers", "1", "--max-steps", "10") == 143  # so that the save before has another best
    run = store.find("stopped")
    file = run.file("teacher") / "best.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert minigpt(["train", "--resume", "stopped"]) == 1
    assert "is not the one that run 'stopped' began with" in capsys.readouterr().err
    assert [finding.file for finding in verify(run) if finding.level == "problem"][:1] == ["teacher"]


def test_a_text_that_changed_since_the_teacher_was_trained_is_refused(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(13, patch)  # in the run, before its first save
        patch.setattr("minigpt_cli.checkpoints.save", lambda run, *rest, **more: _fail(run, save, *rest, **more))
        train("stopped", "--teachers", "1")
    Path("text.txt").write_text(TEXT.upper())
    assert minigpt(["train", "--resume", "stopped"]) == 2
    assert "has changed since this run started" in capsys.readouterr().err


save = checkpoints.save


def _fail(run: Run, save: Callable[..., Any], *rest: Any, **more: Any) -> Any:
    if "/" not in run.name:
        raise MiniGPTError("no space")
    return save(run, *rest, **more)


def test_what_a_run_would_refuse_is_refused_before_its_teachers_are_trained(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("refused", "--teachers", "1", "--max-steps", "3000", "--keep-every", "1") == 2
    assert "--keep-every" in capsys.readouterr().err
    assert not (store.dir / "refused").exists()


def test_a_teacher_stays_where_and_as_it_is(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("taught", "--teachers", "1") == 0
    assert minigpt(["runs", "rename", "taught/teacher", "other"]) == 2
    for name in ("runs/taught/teacher", "taught/teacher"):
        assert minigpt(["runs", "rm", name, "--yes"]) == 2
    assert minigpt(["train", "text.txt", "--init-from", "taught/teacher", "--lora-rank", "2", "--max-steps", "4"]) == 2
    assert minigpt(["train", "--resume", "taught/teacher", "--max-steps", "20"]) == 2
    assert "has taught already" in capsys.readouterr().err


@pytest.mark.parametrize("taught_by", ["12:4", "12:4:0 garbage;12:4:0", "0:4:0;12:4:0", "12:4:0 9:lr=1 3:lr=2;12:4:0"])
def test_notes_of_teachers_that_cannot_be_read_are_refused(taught_by: str) -> None:
    with pytest.raises(ValidationError):
        RunConfig.model_validate({"distil": {"teachers": 2, "taught_by": taught_by}})
