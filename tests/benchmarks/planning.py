"""What the planner knows: a table of short runs, the law fitted to it, and how far plans are from the best of a search.

For whoever changes the planner, and whoever doubts it.

    python tests/benchmarks/planning.py table --texts FOLDER --out rows.jsonl

`table` trains every row of DESIGN that `--out` lacks, by a number of tokens and not of seconds, so that a busy machine changes nothing,
and appends a JSON line with the losses along the run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minigpt_cli.config import ComputeConfig, DataConfig, EvalConfig, ModernConfig, OptimConfig, RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.training.device_batches import DeviceBatches
from minigpt_cli.training.distributed import World
from minigpt_cli.training.evaluator import Evaluator
from minigpt_cli.training.state import TrainingState

M = 1_000_000
TEXTS: dict[str, dict[str, Any]] = {
    "shakespeare": {"source": "tinyshakespeare.txt"},
    "persuasion": {"source": "books/Persuasion.md"},
    "dracula": {"source": "books/Dracula.md"},
    "books": {"source": "allbooks.txt"},
    "names": {"source": "names.txt", "documents": "lines"},
    "latin": {"source": "latin"},
    "tang": {"source": "tang", "text_field": "paragraphs"},
    "prose": {"source": "big.txt"},
}
PLAIN = {"tokenizer": "char", "vocab_size": 1024, "max_chars": 0, "block": 128, "batch": 16, "dropout": 0.0, "decay": 0.1}
PLAIN |= {"muon_lr": 0.03, "lr": 6e-3, "ema": 0.99, "cooldown": 0.6, "kind": "modern", "tie": False, "seed": 1}
_LARGE_SPLIT = 150_000  # tokens: of a larger validation split, batches are drawn


def row(text: str, shape: tuple[int, int, int], tokens: float, **others: Any) -> dict[str, Any]:
    """A training: text, (layers, width, heads), tokens, and what differs from PLAIN."""
    return {"text": text, "shape": shape, "tokens": int(tokens), **PLAIN, **others}


S, SM, M4, L6 = (2, 64, 2), (3, 96, 3), (4, 128, 4), (6, 192, 6)


def design() -> list[dict[str, Any]]:
    """The rows, those first that say most."""
    half, one, two, four, eight = (t * M for t in (0.5, 1, 2, 4, 8))
    play = partial(row, "shakespeare")
    rows = [play(s, t) for t in (half, one) for s in (S, SM, M4)] + [play(S, two), play(S, four), play(SM, two), play(M4, two)]
    for n, t in ((27_000, half), (135_000, one)):
        rows += [play(s, t, max_chars=n, dropout=d) for s in (S, M4) for d in (0.0, 0.2)]
    rows += [row("books", s, t, tokenizer=k) for t, s in ((half, S), (half, M4), (two, S), (two, SM)) for k in ("char", "bpe")]
    rows += [play(s, t, batch=b) for s, t in ((S, one), (S, half), (M4, half)) for b in (4, 8, 32)]
    rows += [play(s, t, block=b, batch=2048 // b) for s, t in ((S, one), (M4, half)) for b in (64, 256)]
    rows += [row("books", M4, one, tokenizer="bpe", vocab_size=v) for v in (512, 1024, 2048)] + [row("books", M4, one)]
    rows += [play(s, one, tokenizer="bpe") for s in (S, M4)]
    rows += [row(text, s, half) for text in ("names", "latin", "tang") for s in (S, M4)]
    rows += [play(S, one, muon_lr=x) for x in (0.015, 0.06)] + [play(S, one, lr=x) for x in (3e-3, 1.2e-2)]
    rows += [play(SM, four), play(M4, four), play(L6, one), play(L6, half), play(L6, one, muon_lr=0.02)]
    for s, n, t, d in (
        (S, 27_000, one, 0.2),
        (SM, 27_000, half, 0.2),
        (SM, 135_000, one, 0.1),
        (M4, 27_000, one, 0.4),
        (M4, 135_000, two, 0.2),
        (S, 135_000, four, 0.1),
        (SM, 135_000, two, 0.2),
    ):
        rows.append(play(s, t, max_chars=n, dropout=d))
    rows += [row("tang", S, one, tokenizer="bpe", vocab_size=4096)]
    rows += [row("names", s, one, dropout=d) for s in (S, SM) for d in (0.0, 0.2)]
    rows += [row("latin", S, two, tokenizer=k) for k in ("char", "bpe")]
    rows += [row("persuasion", s, t, dropout=d) for t, d in ((one, 0.0), (four, 0.0), (four, 0.1)) for s in (S, SM)]
    rows += [row("persuasion", M4, two)]
    rows += [play(M4, eight), play(M4, eight, dropout=0.1), play(S, eight), play(SM, eight), play(SM, eight, dropout=0.1)]
    rows += [play(L6, four), play(L6, four, dropout=0.1)]
    rows = [r for i, r in enumerate(rows) if r not in rows[:i]]
    return rows


def config_of(r: dict[str, Any], n_val_tokens: int) -> RunConfig:
    """The configuration of a row."""
    layers, width, heads = r["shape"]
    model = ModernConfig(n_layer=layers, n_embd=width, n_head=heads, block_size=r["block"], dropout=r["dropout"], tie_weights=r["tie"])
    optim = OptimConfig(
        batch_size=r["batch"],
        weight_decay=r["decay"],
        muon_lr=r["muon_lr"],
        lr=r["lr"],
        ema=r["ema"],
        cooldown_frac=r["cooldown"],
        max_steps=max(20, r["tokens"] // (r["batch"] * r["block"])),
    )
    compute = ComputeConfig(device="cpu", precision="bf16", attention="plain", compile="off", threads=1)
    evaluation = EvalConfig(eval_iters=0 if n_val_tokens <= _LARGE_SPLIT else max(1, 65_536 // (r["batch"] * r["block"])))
    return RunConfig(model=model, optim=optim, compute=compute, eval=evaluation, seed=r["seed"])


def train(r: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """The row with its losses along the run."""
    config, device = config_of(r, len(dataset.val.tokens)), torch.device("cpu")
    begun = time.process_time()
    state = TrainingState(config, dataset.tokenizer.vocab_size, device, World())
    batches, evaluator = DeviceBatches(config, dataset, device, World()), Evaluator(config, dataset, state)
    passes = r["tokens"] / len(dataset.train.tokens)
    steps, checks = config.optim.max_steps, 2 + min(8, int(passes / 2))
    due = {math.ceil(steps * (i + 1) / checks) for i in range(checks)}
    curve = []
    for step in range(steps):
        state.step(step, batches)
        if step + 1 in due:
            m = evaluator()
            curve.append((step + 1, m.nats_per_char, m.train_loss))
    return {
        **r,
        "steps": steps,
        "n_params": sum(p.numel() for p in state.model.parameters()),
        "vocab": dataset.tokenizer.vocab_size,
        "train_tokens": len(dataset.train.tokens),
        "train_chars": dataset.train.n_chars,
        "best": min((c[1] for c in curve if c[1] is not None), default=None),
        "last": curve[-1][1],
        "curve": curve,
        "cpu_s": round(time.process_time() - begun, 1),
    }


def table(folder: Path, out: Path) -> None:
    """Train the rows that `out` lacks; several processes share them."""
    torch.set_num_threads(1)
    claims = out.with_suffix(".claims")
    claims.mkdir(exist_ok=True)
    for r in design():
        try:
            (claims / hashlib.sha256(json.dumps(r, sort_keys=True).encode()).hexdigest()[:16]).mkdir()
        except FileExistsError:
            continue
        given = TEXTS[r["text"]]
        data = DataConfig(
            **{**given, "source": str(folder / given["source"])},
            tokenizer=r["tokenizer"],
            vocab_size=r["vocab_size"],
            max_chars=r["max_chars"],
        )
        result = train(r, prepared(data, None, lambda step: None))
        with out.open("a") as file:
            file.write(json.dumps(result) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    tabled = commands.add_parser("table")
    tabled.add_argument("--texts", type=Path, required=True)
    tabled.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    table(arguments.texts, arguments.out)


if __name__ == "__main__":
    main()
