"""What --document-mask changes: runs with and without it, each scored with its documents alone and with those before them in the window.

    python tests/benchmarks/document_mask.py --source SOURCE [--seeds 3] [-- FLAG ...]

FLAG: further flags of minigpt train, such as --documents lines. Prints JSON: nats per character of every run both ways, by seed, and the
processor time of a training step with the mask over that without it (one thread, steps in turns, the fastest of each).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable

import torch

from minigpt_cli import cli
from minigpt_cli.checkpoints import load
from minigpt_cli.config import RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.evaluation.evaluate_run import dataset_of
from minigpt_cli.evaluation.scoring import Reader, score_split
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.contract import end_of_text
from minigpt_cli.training.device_batches import DeviceBatches
from minigpt_cli.training.distributed import World
from minigpt_cli.training.state import TrainingState

STEPS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="further flags of minigpt train, after --")
    arguments = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"MINIGPT_RUNS_DIR": f"{scratch}/runs", "MINIGPT_DATA_DIR": f"{scratch}/data"}
        for way, flag in (("without", []), ("with", ["--document-mask"])):
            found[way] = {"alone": [], "after others": []}
            for seed in range(1, arguments.seeds + 1):
                name = f"{way}-{seed}"
                if cli.run(["train", arguments.source, "--name", name, "--seed", str(seed), *arguments.flags, *flag]):
                    raise SystemExit(f"run {name} failed")
                run = RunStore().find(name)
                for how, scores in found[way].items():
                    scores.append(round(_score(run, alone=how == "alone"), 4))
        ratio = _cost(run.config, dataset_of(run))
    print(json.dumps({"nats_per_char": found, "step_time_ratio": round(ratio, 3)}, indent=1))


def _score(run: Run, *, alone: bool) -> float:
    loaded, dataset = load(run), dataset_of(run)
    loaded.model.end_of_text = end_of_text(loaded.tokenizer) if alone else None  # type: ignore[assignment]
    return score_split(Reader(loaded.model, loaded.tokenizer, run.config.model.block_size), dataset, "val").nats_per_char


def _cost(config: RunConfig, dataset: Dataset) -> float:
    torch.set_num_threads(1)
    cpu, tokenizer = torch.device(config.compute.device), dataset.tokenizer
    batches = DeviceBatches(config, dataset, cpu, World())
    states = [TrainingState(config, tokenizer.vocab_size, cpu, end_of_text=end) for end in (None, end_of_text(tokenizer))]
    seconds = [[_seconds(state.step, number, batches) for state in states] for number in range(STEPS)]
    without, masked = (min(column) for column in zip(*seconds, strict=True))
    return masked / without


def _seconds(step: Callable[..., object], number: int, batches: DeviceBatches) -> float:
    start = time.thread_time()
    step(number, batches)
    return time.thread_time() - start


if __name__ == "__main__":
    main()
