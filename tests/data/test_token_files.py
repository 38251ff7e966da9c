"""A killed preparation is gone on with, and gives the bytes of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.config import DataConfig
from minigpt_cli.data import encoding, token_files
from minigpt_cli.data.atomic_folder import UNFINISHED
from minigpt_cli.data.encoding import prepare, prepared
from minigpt_cli.data.sources import decoding
from minigpt_cli.tokenization import library, segments

NAMES = ("train.bin", "val.bin", "tokenizer.json")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "_SAVE_EVERY", 500)
    monkeypatch.setattr(segments, "LIMIT", 300)
    monkeypatch.setattr(library, "_BATCH", 2)
    monkeypatch.setattr(encoding, "_TOGETHER", 2000)


@pytest.fixture(params=["one text", "documents", "conversations"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    draw = random.Random(2)
    lines = [" ".join(draw.choices(["arma", "virumque", "canō", "日本。", "Troiae,"], k=draw.randint(3, 30))) for _ in range(300)]
    path = tmp_path / ("text.txt" if request.param == "one text" else "text.jsonl")
    rows: list[Any] = [{"text": line} if request.param == "documents" else {"prompt": line, "completion": "Cano."} for line in lines]
    path.write_text("\n".join(lines if request.param == "one text" else map(json.dumps, rows)))
    return str(path)


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in NAMES]


def interrupt(config: DataConfig, data: Path, steps: int) -> Path:
    """Prepare up to so many steps of encoding; returns the folder that is left."""
    made = prepare(config, data)
    while steps:
        steps -= next(made).phase == "encoding"
    made.close()
    return next(data.glob(f"{UNFINISHED}*"))


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_preparation_goes_on_where_it_was_interrupted(
    tokenizer: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "BLOCK", 900)
    config, data = DataConfig(source=source, tokenizer=tokenizer, vocab_size=270), tmp_path / "data"
    whole = content(prepared(config, tmp_path / "whole").dir)
    done = []
    for steps in (3, 9):
        progress = json.loads((interrupt(config, data, steps) / token_files.PROGRESS).read_text())
        done.append(sum(n_bytes for n_bytes, _ in progress["files"].values()))
        monkeypatch.setattr(encoding, "_made", None)  # nothing is learned again
    assert 500 <= done[0] < done[1] < sum(map(len, whole[:2]))
    found = prepared(config, data)
    assert content(found.dir) == whole
    assert [path.name for path in data.iterdir()] == [found.dir.name]


@pytest.mark.parametrize("damage", ["text", "file", "tokenizer", "progress", "short"])
def test_what_is_not_as_it_was_noted_is_made_anew(damage: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("arma virumque cano " * 400)
    config = DataConfig(source=str(text), tokenizer="bpe", vocab_size=270)
    whole = content(prepared(config, tmp_path / "whole").dir)
    folder = interrupt(config, tmp_path / "data", 4)
    train = folder / "train.bin"
    if damage == "file":
        train.write_bytes(b"\0\0" + train.read_bytes()[2:])
    elif damage == "short":
        train.write_bytes(train.read_bytes()[:100])
    elif damage == "text":
        train.write_bytes(train.read_bytes() + b"what was written after the note")
    else:
        (folder / ("tokenizer.json" if damage == "tokenizer" else token_files.PROGRESS)).write_text("{}")
    assert content(prepared(config, tmp_path / "data").dir) == whole


def test_a_folder_that_another_process_builds_in_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("arma virumque cano " * 400)
    config = DataConfig(source=str(text), tokenizer="bpe", vocab_size=270)
    other = prepare(config, tmp_path / "data")
    while next(other).phase != "encoding":
        pass
    found = content(prepared(config, tmp_path / "data").dir)
    assert [step.phase for step in other][-1] == "encoding"
    assert content(prepared(config, tmp_path / "data").dir) == found
    assert len(list((tmp_path / "data").iterdir())) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from minigpt_cli.config import DataConfig
from minigpt_cli.data import token_files
from minigpt_cli.data.encoding import prepared
from minigpt_cli.tokenization import segments
token_files._SAVE_EVERY, segments.LIMIT = 500, 300
left = [int(sys.argv[3])]
def on_progress(step):
    left[0] -= step.phase == "encoding"
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
prepared(DataConfig(source=sys.argv[1], tokenizer="bpe", vocab_size=270), Path(sys.argv[2]), on_progress)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_process_leaves_what_the_next_goes_on_from(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("arma virumque cano Troiae qui primus ab oris " * 400)
    config = DataConfig(source=str(text), tokenizer="bpe", vocab_size=270)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(text), str(tmp_path / "data"), "4"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "data").glob(f"{UNFINISHED}*/{token_files.PROGRESS}")] == [token_files.PROGRESS]
    found = prepared(config, tmp_path / "data")
    assert content(found.dir) == content(prepared(config, tmp_path / "whole").dir)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [found.dir.name]
