"""Runs that were trained without a part of the model: trained and written like others, marked, never ranked, never exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness.commands import run

from minigpt_cli.config import REMOVABLE
from minigpt_cli.runstore.store import RunStore, by_text

TINY = ["--max-steps", "3", "--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--block-size", "8", "--eval-every", "3", "--ema", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run and one without a mask."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 40)
    for name, more in (("whole", []), ("cheat", ["--arch", "plain", "--without", "mask"])):
        assert run(folder, "train", str(folder / "text.txt"), "--name", name, *TINY, *more) == 0
    return folder


def test_it_is_marked_in_the_list_and_missing_on_the_leaderboard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(folder, "runs", "list") == 0
    shown = capsys.readouterr()
    assert [("†" in line) for line in shown.out.splitlines()[1:]] == [False, True]
    assert "never ranked: cheat (mask)" in shown.err
    assert run(folder, "runs", "leaderboard", "--json") == 0
    shown = capsys.readouterr()
    assert [row["run"] for row in json.loads(shown.out)] == ["whole"]
    assert "not ranked: cheat" in shown.err
    assert run(folder, "runs", "show", "top", "--json") == 0
    assert json.loads(capsys.readouterr().out)["run"] == "whole"


@pytest.mark.parametrize("part", REMOVABLE)
def test_every_part_can_be_left_out_of_training(folder: Path, part: str, tmp_path: Path) -> None:
    train = ["train", str(folder / "text.txt"), "--runs-dir", str(tmp_path), *TINY]
    assert run(folder, *train, "--arch", "plain", "--without", part) == 0
    assert run(folder, "runs", "look", "latest", "--runs-dir", str(tmp_path), "--json") == 0


def test_it_writes_the_same_text_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    texts = []
    for _ in range(2):
        assert run(folder, "generate", "cheat", "--prompt", "The ", "--max-new-tokens", "20", "--greedy", "--json") == 0
        texts.append(json.loads(capsys.readouterr().out)["samples"][0]["text"])
    assert len(texts[0]) == 20
    assert texts[0] == texts[1]


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_its_export_is_refused_by_name(folder: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "runs", "export", "cheat", "--format", form, "--out", str(folder / "out")) == 2
    assert "no architecture like --arch plain --without mask" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_the_flag_belongs_to_the_architecture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "train", str(folder / "text.txt"), "--without", "mask", *TINY) == 2
    assert "--without belongs to --arch plain" in capsys.readouterr().err
    assert run(folder, "train", str(folder / "text.txt"), "--arch", "plain", "--without", "eyes", *TINY) == 2
    assert "'eyes' is no part: join some of mask, positions" in capsys.readouterr().err


def test_a_record_that_names_another_architecture_does_not_bring_it_onto_the_leaderboard(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = RunStore(tmp_path / "runs").find("cheat")
    run.write_record(run.record.model_copy(update={"arch": "modern"}))
    groups = by_text(RunStore(tmp_path / "runs").runs())
    assert [[one.name for one in group] for group in groups] == [["whole"]]
