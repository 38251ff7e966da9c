"""A run or one of its checkpoints is understood by its path wherever a run is named on the command line, and nowhere else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.commands.serve import build_app
from minigpt_cli.errors import RunNotFound
from minigpt_cli.runstore.store import RunStore

PATHS = ["runs/first", "runs/first/", "./runs/first", "runs/first/best.safetensors", "runs/first/last.safetensors", "elsewhere/first"]
COMMANDS = [
    ["eval", "RUN"],
    ["generate", "RUN", "--max-new-tokens", "2"],
    ["compare", "RUN", "other"],
    ["runs", "show", "RUN"],
    ["runs", "diff", "RUN", "other"],
    ["runs", "plot", "RUN"],
    ["runs", "watch", "RUN", "--once"],
    ["runs", "verify", "RUN"],
    ["runs", "tag", "RUN", "keep"],
    ["runs", "note", "RUN", "a word"],
    ["runs", "export", "RUN", "--out", "exported"],
    ["runs", "import", "RUN", "--name", "again"],
    ["train", "--resume", "RUN", "--max-steps", "5"],
    ["train", "text.txt", "--init-from", "RUN", "--max-steps", "2", "--name", "next"],
    ["runs", "rename", "RUN", "second"],
]


@pytest.fixture
def runs(trained: Path) -> Path:
    """Two runs in ./runs, and one in another folder."""
    shutil.copytree("runs/first", "runs/other")
    shutil.copytree("runs/first", "elsewhere/first")
    return trained


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_every_command_understands_a_path(command: list[str], runs: Path, cli: Any) -> None:
    done = cli(*(word.replace("RUN", "elsewhere/first/best.safetensors") for word in command))
    assert done.code == 0, done.err


@pytest.mark.parametrize("path", PATHS)
def test_every_way_to_write_it(path: str, runs: Path, cli: Any) -> None:
    assert cli("runs", "show", path).code == 0
    found = RunStore("runs").find(path)
    assert found.dir == runs / ("elsewhere/first" if "elsewhere" in path else "runs/first")
    assert found.checkpoint == (Path(path).stem if path.endswith("safetensors") else None)
    assert RunStore("runs").find(str(runs / path)).dir == found.dir


def test_a_path_to_a_checkpoint_chooses_it(runs: Path, cli: Any) -> None:
    for name in ("best", "last"):
        assert cli("eval", f"runs/first/{name}.safetensors", "--json").json["ckpt"] == name
        assert cli("runs", "export", f"runs/first/{name}.safetensors", "--out", name, "--json").json["ckpt"] == name


def test_inside_the_folder_of_runs_and_of_a_run(runs: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, wanted in ((runs / "elsewhere", "first"), (runs / "elsewhere/first", "."), (runs / "elsewhere/first", "last.safetensors")):
        monkeypatch.chdir(folder)
        assert cli("runs", "show", wanted).code == 0, wanted


def test_changes_are_made_where_the_path_points(runs: Path, cli: Any) -> None:
    assert cli("runs", "rename", "elsewhere/first", "second").code == 0
    assert (runs / "elsewhere/second/run.json").is_file()
    assert cli("runs", "rm", "elsewhere/second", "--yes").code == 0
    assert list((runs / "elsewhere").iterdir()) == []
    assert sorted(RunStore("runs").names()) == ["first", "other"]


@pytest.mark.parametrize("path", ["runs/none", "runs/first/config.json", "runs/first/previous", "text.txt", "runs", "runs/first/../none"])
def test_a_path_that_is_not_a_run_is_refused_in_one_line(path: str, runs: Path, cli: Any) -> None:
    done = cli("runs", "show", path)
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_a_server_opens_no_path(runs: Path) -> None:
    pytest.importorskip("fastapi")
    store = RunStore("runs")
    for name in ("elsewhere/first", str(runs / "elsewhere/first"), "../elsewhere/first", "."):
        with pytest.raises(RunNotFound):
            store.find_name(name)
    from starlette.testclient import TestClient

    app = build_app(store, api_key=None, engine="torch", only=None, ckpt="best", local_only=True)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        asked = {"prompt": "a", "max_tokens": 1}
        assert client.post("/v1/completions", json=asked | {"model": str(runs / "elsewhere/first")}).status_code == 404
        assert client.post("/v1/completions", json=asked | {"model": "first"}).status_code == 200
