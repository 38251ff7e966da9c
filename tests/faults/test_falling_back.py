"""When the newest save is damaged, every command uses the one before it and says so."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from harness import tiny

from minigpt_cli import cli as cli_module
from minigpt_cli.runstore import snapshots

FILES = ["run.json", "config.json", "tokenizer.json", "best.safetensors", "last.safetensors", "resume.safetensors"]
READERS = ["generate run --prompt a --max-new-tokens 2", "eval run", "compare run other", "runs export run --out exported"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, as they are before anything happens to them."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(tiny.text(1500))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("run", "other"):
            assert cli_module.run(["train", "text.txt", "--name", name, *tiny.training(4, 1)]) == 0
    return folder


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.unlink()  # the save before may share it by a hard link
    path.write_bytes(data)
    snapshots.forget()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ["train --resume run --max-steps 8", *READERS])
def test_the_previous_save_is_used_with_a_notice(
    command: str, name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["minigpt", *command.split()])
    damage(Path("runs/run") / name)
    opened = ["run.json", "config.json"]
    if command.startswith(("generate", "runs export")):
        opened += ["tokenizer.json", "best.safetensors"]
    needed = name in opened or "train" in command  # eval and compare keep their scores, under the checksum of the weights
    code = cli_module.run(command.split())
    said = capsys.readouterr().err
    assert code == 0, said
    assert ("using the one before" in " ".join(said.split())) == needed, said
