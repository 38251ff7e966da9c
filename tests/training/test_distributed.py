"""Several processes train the run that one process would: same global batch, same losses; and stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from minigpt_cli.training.distributed import World

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")

TINY = [
    "--n-layer",
    "1",
    "--n-embd",
    "16",
    "--n-head",
    "2",
    "--block-size",
    "16",
    "--precision",
    "fp32",
    "--attention",
    "plain",
    "--seed",
    "3",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "minigpt_cli"]
ALONE = [sys.executable, "-m", "minigpt_cli"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(
        "".join(f"line {i}: the {['quick', 'slow', 'red'][i % 3]} fox counts to {i * 7 % 97}.\n" for i in range(600)), encoding="utf-8"
    )
    return path


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MINIGPT_RUNS_DIR": str(folder / "runs"), "MINIGPT_DATA_DIR": str(folder / "data")}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def evaluations(command: list[str], folder: Path) -> list[dict[str, float]]:
    process = start(command, folder)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return [event for event in map(json.loads, out.splitlines()) if event["event"] == "evaluated"]


def test_two_processes_lose_what_one_loses_over_fifty_steps(tmp_path: Path, text: Path) -> None:
    common = ["train", str(text), *TINY, "--max-steps", "50", "--eval-every", "10", "--json"]
    one = evaluations([*ALONE, *common, "--name", "one", "--batch-size", "8"], tmp_path)
    two = evaluations([*TORCHRUN, *common, "--name", "two", "--batch-size", "4"], tmp_path)
    assert [e["step"] for e in two] == [10, 20, 30, 40, 50]
    for a, b in zip(one, two, strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-3)
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-3)
        assert a["tokens_seen"] == b["tokens_seen"]


def test_sharded_weights_lose_what_whole_ones_lose(tmp_path: Path, text: Path) -> None:
    settings = "--optimizer adamw --grad-clip 0.5 --ema 0 --max-steps 20 --eval-every 10"
    common = ["train", str(text), *TINY, *settings.split(), "--json"]
    one = evaluations([*ALONE, *common, "--name", "one", "--batch-size", "8"], tmp_path)
    two = evaluations([*TORCHRUN, *common, "--name", "two", "--batch-size", "4", "--fsdp"], tmp_path)
    assert [e["val_loss"] for e in one] == pytest.approx([e["val_loss"] for e in two], abs=1e-3)


def test_a_signal_to_one_process_stops_and_saves_all(tmp_path: Path, text: Path) -> None:
    command = [
        *TORCHRUN,
        "train",
        str(text),
        *TINY,
        "--batch-size",
        "4",
        "--max-steps",
        "1000000",
        "--eval-every",
        "1000000",
        "--name",
        "long",
    ]
    process = start([*command, "--json"], tmp_path)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "started"
    time.sleep(1.0)
    worker = next(pid for pid in children(process.pid))
    os.kill(worker, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    stopped = [event for event in map(json.loads, out.splitlines()) if event["event"] == "stopped"]
    assert len(stopped) == 1, err
    assert stopped[0]["stop_reason"] == "terminated"
    record = json.loads((tmp_path / "runs" / "long" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "interrupted"
    assert record["stop_step"] == stopped[0]["step"] > 0


def children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in listing.stdout.split()]


def test_one_process_alone_pays_nothing() -> None:
    world = World()
    assert world.is_writer
    assert world.share({"a": 1}) == {"a": 1}
    assert world.gather(5) == [5]
