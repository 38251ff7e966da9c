"""What safety costs: listing a thousand runs, saving and loading a checkpoint with its checksums, verifying a run.

    python tests/benchmarks/run_store.py

Medians of repeats, as JSON. `plain_ms` is safetensors' own writer, without fsync, checksums, generations or a record.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import tiny

from minigpt_cli import checkpoints
from minigpt_cli.config import RunConfig
from minigpt_cli.evaluation.leaderboard import rank
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, now
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.verify import verify

LETTERS = [ord(c) for c in "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:'!?-\n"]


def median_ms(work: Callable[[], object], repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 1)


def make(store: RunStore, name: str, settings: RunConfig) -> Run:
    return tiny.begun(store, name, settings, CharTokenizer(LETTERS).to_json(), vocab_size=len(LETTERS), placed_at=now())


def saving(folder: Path, settings: RunConfig) -> dict[str, float]:
    run = make(RunStore(folder), "saved", settings)
    weights = build_model(settings.model, len(LETTERS), 0).state_dict()
    resume = {f"{kind}.{name}": tensor.clone() for kind in ("first", "second") for name, tensor in weights.items()}
    record = run.record.model_copy(update={"best": Best(step=0, nats_per_token=1.0, nats_per_char=1.0)})

    def save() -> None:
        checkpoints.save(run, record, last=weights, resume=resume, resume_state={"step": 0}, best=weights)

    def save_plain() -> None:
        for name, tensors in (("last", weights), ("best", weights), ("resume", resume)):
            safetensors.torch.save_file(tensors, folder / f"plain-{name}.safetensors")

    found = {"megabytes": sum(t.numel() * 4 for group in (weights, weights, resume) for t in group.values()) / 1e6}
    found["save_ms"], found["plain_ms"] = median_ms(save), median_ms(save_plain)
    real, os.fsync = os.fsync, lambda fd: None
    found["save_without_fsync_ms"] = median_ms(save)
    os.fsync = real
    found["load_ms"] = median_ms(lambda: checkpoints.load(run))
    found["load_resume_ms"] = median_ms(lambda: checkpoints.load_resume(run))
    found["verify_ms"] = median_ms(lambda: list(verify(run)))
    return found


def listing(folder: Path, settings: RunConfig, runs: int = 1000) -> dict[str, float]:
    store = RunStore(folder)
    template = make(store, "first", settings).file("run.json").read_bytes()
    for i in range(runs - 1):
        (store.dir / f"run-{i}").mkdir()
        (store.dir / f"run-{i}" / "run.json").write_bytes(template)
    command = [sys.executable, "-m", "minigpt_cli", "runs", "list", "--json", "--runs-dir", str(folder)]
    quiet: dict[str, int] = {"stdout": subprocess.DEVNULL}
    return {
        "runs": runs,
        "list_ms": median_ms(store.list, 5),
        "leaderboard_ms": median_ms(lambda: rank(store.runs()), 5),
        "command_ms": median_ms(lambda: subprocess.run(command, check=True, **quiet), 3),
        "command_on_one_run_ms": median_ms(lambda: subprocess.run([*command[:-1], str(folder / "none")], check=True, **quiet), 3),
    }


def main() -> None:
    torch.set_num_threads(1)
    settings = RunConfig.model_validate({"model": {"arch": "modern", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128}})
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"checkpoint": saving(Path(folder) / "a", settings), "thousand": listing(Path(folder) / "b", settings)}, indent=1))


if __name__ == "__main__":
    main()
