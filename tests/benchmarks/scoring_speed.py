"""What exact scores cost: against one bare forward pass over the same text, and what comparing costs once they are kept.

    python tests/benchmarks/scoring_speed.py [--rounds 7] [--threads 0]

`ratio`: nats of every token (float32, float64 sums) over the forward pass alone in the same batches, CPU seconds, interleaved medians.
`compare_1mb_s`: `minigpt compare` of two kept evaluations of 1,000,000 characters, a whole process. `leaderboard_1000_s`: `minigpt
runs leaderboard` over 1,000 runs with kept scores. Both as CPU seconds, which a busy neighbour does not change. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from minigpt_cli.config import ClassicConfig, ModernConfig, RunConfig
from minigpt_cli.evaluation import cache, scoring
from minigpt_cli.evaluation.eval_target import Target, score_key
from minigpt_cli.evaluation.scores import Score, make_score
from minigpt_cli.evaluation.windows import batch_rows
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, Corpus, FileRecord, RunRecord, SplitRecord

MODELS = {
    "modern 4 x 128, 65 characters": (ModernConfig(), 65, 60_000),
    "classic 6 x 384, block 256, 65 characters": (ClassicConfig(n_layer=6, n_head=6, n_embd=384, block_size=256), 65, 12_000),
    "modern 4 x 128, 4096 byte pairs": (ModernConfig(), 4096, 20_000),
}


def forward_s(model: torch.nn.Module, ids: np.ndarray, block: int, rows: int) -> float:
    began = time.process_time()
    with torch.inference_mode():
        for start in range(0, len(ids) - block * rows + 1, block * rows):
            model(torch.from_numpy(ids[start : start + block * rows].reshape(rows, block)))
    return time.process_time() - began


def score_s(model: torch.nn.Module, ids: np.ndarray, block: int) -> float:
    began = time.process_time()
    scoring.token_nats(model, ids, context=ids[:block], block_size=block)
    return time.process_time() - began


def ratio(config: ModernConfig | ClassicConfig, vocab: int, n_tokens: int, rounds: int) -> dict[str, float]:
    model, block = build_model(config, vocab, seed=1).eval(), config.block_size
    rows = batch_rows(block, vocab)
    n_tokens = max(1, n_tokens // (block * rows)) * block * rows
    ids = np.random.default_rng(0).integers(0, vocab, n_tokens)
    forward_s(model, ids, block, rows)
    pairs = [(forward_s(model, ids, block, rows), score_s(model, ids, block)) for _ in range(rounds)]
    return {
        "forward_us_per_token": 1e6 * statistics.median(a for a, _ in pairs) / n_tokens,
        "score_us_per_token": 1e6 * statistics.median(b for _, b in pairs) / n_tokens,
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def keep_run(runs_dir: Path, name: str, found: Score, number: int) -> None:
    run = Run(runs_dir / name)
    run.dir.mkdir(parents=True)
    run.file("config.json").write_text(RunConfig().model_dump_json())
    split = SplitRecord(sha256=found.text_sha256, n_tokens=found.n_tokens, n_chars=found.n_chars, n_bytes=found.n_bytes)
    record = RunRecord(
        name=name,
        status="finished",
        arch="modern",
        corpus=Corpus(label="t", sha256="c" * 64, splits={"train": split.model_copy(update={"sha256": "a" * 64}), "val": split}),
        best=Best(step=1, nats_per_token=found.nats_per_token, nats_per_char=found.nats_per_char, ci95=found.ci95, whole_split=True),
        files={"best.safetensors": FileRecord(sha256=f"{number:064x}", bytes=1)},
    )
    run.file("run.json").write_text(record.to_json())
    cache.keep(run.dir, score_key(run, Target()), found)


def simulated(rng: np.random.Generator, n: int) -> Score:
    nats = rng.exponential(1.5, n)
    return make_score(nats, nats, np.arange(n) % 128, (b"to be or not " * (n // 13 + 1))[:n])


def command_s(runs_dir: Path, *arguments: str, rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        before = os.times()
        subprocess.run([sys.executable, "-m", "minigpt_cli", *arguments, "--runs-dir", str(runs_dir)], check=True, capture_output=True)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    document = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    found = {name: ratio(*model, asked.rounds) for name, model in MODELS.items()}
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for number, name in enumerate("ab"):
            keep_run(Path(folder) / "two", name, simulated(rng, 1_000_000), number)
        for number in range(1000):
            keep_run(Path(folder) / "many", f"run-{number}", simulated(rng, 100_000), number)
        document["compare_1mb_s"] = command_s(Path(folder) / "two", "compare", "a", "b", rounds=asked.rounds)
        document["leaderboard_1000_s"] = command_s(Path(folder) / "many", "runs", "leaderboard", rounds=asked.rounds)
    print(json.dumps({**document, "scoring": found}, indent=2))


if __name__ == "__main__":
    main()
