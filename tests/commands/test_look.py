"""minigpt runs look: what it prints, what it keeps, and when it measures again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness.commands import run

from minigpt_cli import checkpoints

TEXT = "The quick brown fox jumps over the lazy dog. Über 20 Füchse!\n" * 60
TINY = ["--max-steps", "2", "--eval-every", "2", "--n-layer", "2", "--n-embd", "16", "--n-head", "2", "--block-size", "16", "--ema", "0"]
RUNS = {
    "modern": [],
    "experts": ["--arch", "moe"],
    "dropped": ["--arch", "classic", "--dropout", "0.2"],
    "cheat": ["--arch", "plain", "--without", "mask"],
    "bytes": ["--tokenizer", "byte"],
}
KEYS = {"part", "delta_nats_per_char", "ci95", "p_holm", "measurable", "roles", "attends"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    for name, more in RUNS.items():
        assert run(folder, "train", str(folder / "text.txt"), "--name", name, *TINY, *more) == 0
    steps = ["--max-steps", "2", "--eval-every", "2", "--ema", "0", "--block-size", "16"]
    assert run(folder, "train", str(folder / "text.txt"), "--name", "pairs", "--arch", "bigram", *steps) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained runs, in which nothing is kept yet."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for kept in tmp_path.glob("runs/*/scores/inside-*"):
        kept.unlink()
    return tmp_path


def look(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    capsys.readouterr()
    assert run(folder, "runs", "look", *args, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", RUNS)
def test_every_part_of_every_architecture_is_measured(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = look(folder, capsys, name)
    assert found["run"] == name
    heads = [f"head {layer}.{head}" for layer in range(2) for head in range(2)]
    assert [part["part"] for part in found["parts"]] == [*heads, "mlp 0", "mlp 1", "layer 0", "layer 1", "positions"]
    assert all(part.keys() == KEYS for part in found["parts"])
    assert all(part["ci95"][0] <= part["delta_nats_per_char"] <= part["ci95"][1] for part in found["parts"])
    assert [each["tokens"] for each in found["context"]] == [1, 2, 4, 8, 16]
    assert {kind["kind"] for kind in found["kinds"]} >= {"word-initial", "inside a word", "space", "digit"}
    assert len(found["experts"]) == (2 if name == "experts" else 0)
    assert (found["dropout"] is not None) == (name == "dropped")
    assert run(folder, "runs", "look", name) == 0
    assert "layer 1" in capsys.readouterr().out


def test_the_sample_is_scored_as_eval_scores_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The validation text is shorter than the sample may be; what is missing is less than a window."""
    for name in ("modern", "bytes", "pairs"):
        found = look(folder, capsys, name)
        assert run(folder, "eval", name, "--json") == 0
        scored = json.loads(capsys.readouterr().out)
        assert 0 <= scored["n_chars"] - found["n_chars"] < 17
        assert found["nats_per_char"] == pytest.approx(scored["nats_per_char"], rel=0.02)


def test_a_second_look_loads_no_model_until_the_weights_change(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(folder, capsys, "modern")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load", lambda *_: pytest.fail("a model was loaded"))
        assert look(folder, capsys, "modern") == first
    assert look(folder, capsys, "modern", "--fresh") == first
    (kept,) = (folder / "runs/modern/scores").glob("inside-*.json")
    for damage in ("{", "[]", kept.read_text().replace('"n_chars"', '"n_charts"'), '{"n_chars": 1e400}'):
        kept.write_text(damage)
        assert look(folder, capsys, "modern") == first
    assert run(folder, "train", "--resume", "modern", "--max-steps", "8") == 0
    assert look(folder, capsys, "modern") != first


def test_an_interrupted_look_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from minigpt_cli.evaluation import part_costs

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(part_costs, "context_losses", interrupt)
    assert run(folder, "runs", "look", "modern") == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not list((folder / "runs/modern/scores").glob("inside-*"))


def test_a_text_that_is_gone_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_cli.evaluation import evaluate_run, inside

    def gone(run: object) -> None:
        evaluate_run._prepared_again(run, run.config.data.model_copy(update={"source": str(folder / "gone.txt")}), "")  # type: ignore[attr-defined, arg-type]

    monkeypatch.setattr(inside, "dataset_of", gone)
    assert run(folder, "runs", "look", "modern") == 2
    error = capsys.readouterr().err
    assert "is no longer there" in error
    assert "runs look needs the text that a run was trained on" in error
    assert "--data" not in error


def test_a_run_folder_that_cannot_be_written_is_looked_into_all_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "runs/modern/scores")
    (folder / "runs/modern/scores").write_text("a file where the folder belongs")
    assert look(folder, capsys, "modern")["parts"]


def test_a_text_is_read_layer_by_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = look(folder, capsys, "modern", "--text", "The dog")["text"]
    assert text["tokens"] == list("The dog")
    assert text["stages"] == ["embedding", "layer 0", "layer 1"]
    assert [len(stage) for stage in text["guesses"]] == [6, 6, 6]
    assert text["nats"][0] is None
    assert all(nats > 0 for nats in text["nats"][1:])
    assert run(folder, "runs", "look", "modern", "--text", "The dog\n jumps") == 0
    out = capsys.readouterr().out
    assert re.search(r"^text +The·dog⏎·jumps$", out, re.MULTILINE)
    assert re.search(r"^nats +\d{13}$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("modern", "T", "too short"), ("modern", "T☃", "☃"), ("pairs", "The", "has no layers to look into: leave out --text")],
)
def test_a_text_that_cannot_be_read_is_refused(
    folder: Path, name: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "runs", "look", name, "--text", text) == 2
    assert message in capsys.readouterr().err
    assert not list((folder / "runs" / name / "scores").glob("inside-*"))  # before anything is measured


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_terminal(folder: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from minigpt_cli.display import console

    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(folder, "runs", "look", "experts", "--text", "The quick brown ") == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).replace("\r", "").splitlines()
    assert max(len(line) for line in lines if "text.txt" not in line) <= width  # a path is not broken
    assert sum("head" in line for line in lines) == 4
