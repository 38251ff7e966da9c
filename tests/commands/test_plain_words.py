"""What a wrong command line is told: in plain words, with what was probably meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.commands.plain_words import plainly
from minigpt_cli.commands.train_run import _stopped_at_once
from minigpt_cli.display import format
from minigpt_cli.errors import unknown_name
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage.atomic_io import explain, temporary_beside


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["runs", "remove", "a"], "it is minigpt runs rm"),
        (["chat"], "it is minigpt generate RUN -i, or --chat for one question"),
        (["list"], "it is minigpt runs list"),
        (["serve"], "it is minigpt generate --serve"),
        (["plot", "a"], "it is minigpt runs plot"),
        (["presets"], "it is minigpt train --preset"),
        (["runs", "list", "--where", "name~x"], "unknown field 'name': did you mean 'run'?"),
        (["runs", "list", "--where", "learning_rate>1"], "did you mean 'lr'?"),
        (["train", "--learning-rate", "1"], "did you mean --lr?"),
        (["train", "--sweep", "learning-rate=1"], "did you mean 'lr'?"),
        (["train", "--lr", "abc"], "--lr abc: not a number"),
        (["train", "--n-layer=0"], "--n-layer 0: must be 1 or more"),
        (["train", "--batch-size", "1.5"], "--batch-size 1.5: not a whole number"),
        (["train", "--device", "gpu"], "--device gpu: must be 'auto', 'cpu', 'mps' or 'cuda'"),
        (["train", "--min-delta", "q"], "--min-delta q: not a number and not 'auto'"),
        (["train", "--dropout", "2"], "--dropout 2: must be less than 1"),
        (["train", "--epochs", "3"], "did you mean --max-steps?"),
        (["train", "--batch", "8"], "did you mean --batch-size?"),
        (["train", "--gpu"], "did you mean --device?"),
        (["train", "--sample", "8"], "did you mean --sample-every?"),
        (["generate", "--temprature", "0.5"], "did you mean --temperature?"),
        (["generate", "--max-tokens", "5"], "did you mean --max-new-tokens?"),
        (["generate", "latest", "Once upon"], "unexpected 'Once upon': give a prompt with --prompt"),
        (["eval", "latest", "x"], "unexpected 'x': see minigpt eval --help"),
        (["compare"], "missing argument 'RUN': see minigpt compare --help"),
    ],
)
def test_a_wrong_command_is_told_what_was_probably_meant(command: list[str], said: str, cli: Any) -> None:
    done = cli(*command)
    assert done.code == 2
    assert done.err.rstrip().endswith(said)
    assert not any(phrase in done.err for phrase in ("Input should", "Value error", "unable to parse", "invalid value for"))


def test_a_file_that_is_not_there_is_answered_with_names_like_it(home: Path, cli: Any) -> None:
    (home / "my notes.txt").write_text("a", encoding="utf-8")
    assert cli("train", "my note.txt").err.rstrip().endswith("no file or folder my note.txt: did you mean 'my notes.txt'?")
    assert "give a text file" in cli("train", "other.txt").err
    assert "give a text file" in cli("train", "no/folder/my notes.txt").err


def test_values_from_the_environment_are_told_the_same(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_LR", "fast")
    assert "--lr fast: not a number (from MINIGPT_LR)" in cli("train").err


@pytest.mark.parametrize(
    "message", ["Input should be 'auto'", "Value error, wrong", "Input should be a valid integer, got a number with a part"]
)
def test_no_phrase_of_a_library_remains(message: str) -> None:
    assert not {"Input", "Value"} & set(plainly(message).split())


def test_many_known_names_are_cut_and_near_ones_come_first() -> None:
    assert len(str(unknown_name("setting", "?", [f"long_name_{i}" for i in range(80)]))) < 300
    assert str(unknown_name("run", "modern-9", ["modern-1", "bigram-1", "modern-2"])).endswith("did you mean 'modern-2' or 'modern-1'?")


def test_a_temporary_beside_is_not_shown(tmp_path: Path) -> None:
    said = str(explain(OSError(28, "No space left on device", str(temporary_beside(tmp_path / "x.png"))), "write"))
    assert str(tmp_path / "x.png") in said
    assert ".tmp" not in said


def test_times_are_shown_as_people_write_them() -> None:
    shown = format.moment("2026-11-21T10:03:23.325920Z")
    assert shown.split("(")[0].rstrip().count(":") == 1
    assert "T1" not in shown
    assert format.moment("soon") == "soon"


def test_resuming_a_finished_run_says_so_and_how_to_go_on(trained: Path, cli: Any) -> None:
    before = Path("runs/first/run.json").read_bytes()
    done = cli("train", "--resume", "first")
    assert done.code == 0
    steps = RunStore("runs").find("first").config.optim.max_steps
    assert f"run first is finished; to train it further: minigpt train --resume first --max-steps {2 * steps}" in done.err
    assert Path("runs/first/run.json").read_bytes() == before


def test_stopping_at_once_names_the_saved_step_and_the_command_that_goes_on(trained: Path) -> None:
    run = RunStore("runs").find("first")
    said = _stopped_at_once(run)
    assert f"step {run.record.stop_step} is saved: minigpt train --resume first" in said
