"""Training time of the preset `fast-cpu` against nanoGPT's CPU configuration (2000 steps), and the whole-split loss of both.

    python tests/benchmarks/time_to_loss.py --nanogpt DIR --text FILE [--repeats 3]

Both train the same text on the same threads, in turn. The clock of each side runs from the line that it prints when imports are done
(nanoGPT: "tokens per iteration", ours: the `started` event) to its end, so evaluations, saves and compilation count and the
interpreter's start does not. nanoGPT runs the command of its README for a CPU; its last checkpoint is scored here on the whole
validation split in consecutive windows of its block size, as ours is. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

README_FLAGS = [
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1000",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
    "--always_save_checkpoint=True",
]


def prepare_nanogpt(nanogpt: Path, text: str, folder: Path) -> None:
    """Lay out a copy of nanoGPT with its character data made from `text`, split 90/10 as its prepare.py does."""
    for name in ("train.py", "model.py", "configurator.py"):
        (folder / name).write_bytes((nanogpt / name).read_bytes())
    (folder / "config").mkdir()
    (folder / "config" / "train_shakespeare_char.py").write_bytes((nanogpt / "config" / "train_shakespeare_char.py").read_bytes())
    data = folder / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    alphabet = sorted(set(text))
    table = {c: i for i, c in enumerate(alphabet)}
    encoded = np.array([table[c] for c in text], dtype=np.uint16)
    cut = int(len(encoded) * 0.9)
    encoded[:cut].tofile(data / "train.bin")
    encoded[cut:].tofile(data / "val.bin")
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(alphabet), "itos": dict(enumerate(alphabet)), "stoi": table}))


def clocked(command: list[str], folder: Path, begins: str) -> tuple[float, list[str]]:
    """Seconds from the first line of output that holds `begins` to the end of the process, and all its lines."""
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "MINIGPT_RUNS_DIR": str(folder / "runs"),
        "MINIGPT_DATA_DIR": str(folder / "tokens"),
    }
    process = subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    started, lines = math.nan, []
    for line in process.stdout:
        if math.isnan(started) and begins in line:
            started = time.perf_counter()
        lines.append(line)
    seconds = time.perf_counter() - started
    if process.wait() or math.isnan(seconds):
        raise SystemExit(f"{' '.join(command)} failed: {process.stderr.read() if process.stderr else ''}")
    return seconds, lines


def nanogpt_round(folder: Path) -> dict[str, Any]:
    seconds, _ = clocked([sys.executable, "train.py", "config/train_shakespeare_char.py", *README_FLAGS], folder, "tokens per iteration")
    scorer = (
        "import torch, numpy as np; from model import GPT, GPTConfig\n"
        "c = torch.load('out-shakespeare-char/ckpt.pt', weights_only=False); m = GPT(GPTConfig(**c['model_args']))\n"
        "m.load_state_dict(c['model'])\n"
        "m.eval(); d = np.fromfile('data/shakespeare_char/val.bin', dtype=np.uint16).astype(np.int64); T = 64; n = (len(d) - 1) // T\n"
        "x = torch.from_numpy(d[: n * T]).view(n, T); y = torch.from_numpy(d[1 : n * T + 1]).view(n, T); s = 0.0\n"
        "with torch.no_grad():\n"
        "    for i in range(0, n, 64): s += m(x[i : i + 64], y[i : i + 64])[1].item() * len(x[i : i + 64])\n"
        "print('LOSS', s / n, sum(p.numel() for p in m.parameters()))"
    )
    out = subprocess.run([sys.executable, "-c", scorer], cwd=folder, capture_output=True, text=True, check=True).stdout
    loss, n_params = out.split("LOSS ")[1].split()
    return {"seconds": seconds, "nats_per_char": float(loss), "n_params": int(n_params)}


def our_round(folder: Path, text: Path, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "minigpt_cli", "train", str(text), "--preset", "fast-cpu", "--seed", str(seed), "--json"]
    seconds, lines = clocked(command, folder, '"started"')
    events = [json.loads(line) for line in lines]
    stopped = next(e for e in events if e["event"] == "stopped")
    started = next(e for e in events if e["event"] == "started")
    return {"seconds": seconds, "nats_per_char": stopped["best_nats_per_char"], "n_params": started["n_params"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    text = arguments.text.resolve()
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare_nanogpt(arguments.nanogpt, text.read_text(encoding="utf-8"), folder)
        for seed in range(arguments.repeats):
            theirs.append(nanogpt_round(folder))
            ours += [our_round(folder, text, 10 * seed + n) for n in range(2)]
    median = {name: statistics.median(r["seconds"] for r in rounds) for name, rounds in (("ours", ours), ("nanogpt", theirs))}
    loss = {name: statistics.mean(r["nats_per_char"] for r in rounds) for name, rounds in (("ours", ours), ("nanogpt", theirs))}
    result = {"median_s": median, "ratio": median["nanogpt"] / median["ours"], "mean_nats_per_char": loss, "ours": ours, "nanogpt": theirs}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
