"""The ladder: from a table of pairs to a mixture of experts and byte pairs, on one text and for one budget, with verdicts.

    python tests/benchmarks/ladder.py --text FILE|CORPUS [--chars 150000] [--budget 60s] [--seeds 3] [--out DIR] [--json] [--rungs A,B]

Every rung is trained through the command line with several seeds, for the same training time (`--budget 60s`; planned before step 0
from the speed measured then) or the same number of windows a run (`--budget 2000steps`), and changes one thing on the rung before.
Rungs take turns, so that a busy neighbour slows all alike. Then `minigpt compare` says what can be told apart: nats per character on
the whole validation split, intervals over seeds and text. Runs are kept in --out; typed again, what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from minigpt_cli.data.sources.open_source import open_source

SHAPE = "--n-layer 4 --n-head 4 --n-embd 128 --block-size 128 --batch-size 32"
OLD = "--optimizer adamw --lr 1e-3 --min-lr 1e-4 --schedule cosine --warmup-steps 100 --beta2 0.99 --grad-clip 1 --weight-decay 0.1 --ema 0"


@dataclass(frozen=True)
class Rung:
    """A recipe, as flags, and what it changes on the one before."""

    name: str
    change: str
    flags: str


RUNGS = (
    Rung("bigram", "a table of pairs", "--arch bigram --block-size 128 --batch-size 32 --lr 3e-2"),
    Rung("classic", "attention: GPT-2 with AdamW, cosine", f"--arch classic {SHAPE} {OLD} --dropout 0.1"),
    Rung("tuned", "Muon, the default schedule", f"--arch classic {SHAPE} --dropout 0.1"),
    Rung("modern", "RMSNorm, RoPE, SwiGLU, QK-norm", f"--arch modern {SHAPE} --dropout 0.1"),
    Rung("moe", "four experts, two of them active", f"--arch moe {SHAPE} --dropout 0.1"),
    Rung("bpe", "the modern rung on 512 byte pairs", f"--arch modern {SHAPE} --dropout 0.1 --tokenizer bpe --vocab-size 512"),
)


def minigpt(*arguments: str, out: Path) -> subprocess.CompletedProcess[str]:
    """One command line."""
    env = {**os.environ, "MINIGPT_RUNS_DIR": str(out / "runs"), "MINIGPT_DATA_DIR": str(out / "data")}
    return subprocess.run([sys.executable, "-m", "minigpt_cli", *arguments], capture_output=True, text=True, env=env, check=False)


def train(rung: Rung, seed: int, budget: str, out: Path) -> None:
    """Train one run, unless it is done; a failure is said and does not end the rest."""
    name = f"{rung.name}~{seed}"
    if (out / "runs" / name).is_dir():
        if json.loads((out / "runs" / name / "run.json").read_text())["status"] == "finished":
            return
        done = minigpt("train", "--resume", name, out=out)
    else:
        fixed = budget.endswith("steps")
        length = ["--max-steps", budget.removesuffix("steps")] if fixed else ["--max-steps", "0", "--time-budget", budget]
        wanted = [str(out / "text.txt"), "--name", name, "--seed", str(seed), "--eval-every", "0", *rung.flags.split(), *length]
        done = minigpt("train", *wanted, out=out)
    print(f"{name}: {done.stderr.strip().splitlines()[-1] if done.returncode else 'done'}", file=sys.stderr, flush=True)


def rows_of(document: dict[str, Any], rungs: list[Rung], out: Path) -> list[dict[str, Any]]:
    """A row for each rung, with the verdict against the rung before it."""
    groups = {group["group"].partition("~")[0]: group for group in document["groups"]}
    for run in document["runs"]:
        groups.setdefault(run["run"].partition("~")[0], {"mean": run["nats_per_char"], "std": None, "n": 1, "ci95": run["ci95"]})
    pairs = {(p["a"].partition("~")[0], p["b"].partition("~")[0]): p for p in document["pairs"]}
    rows = []
    for before, rung in zip([None, *rungs], rungs, strict=False):
        group = groups[rung.name]
        pair = pairs.get((before.name, rung.name)) if before else None
        records = [json.loads(path.read_text()) for path in sorted((out / "runs").glob(f"{rung.name}~*/run.json"))]
        row = {
            "rung": rung.name,
            "change": rung.change,
            "nats_per_char": group["mean"],
            "ci95": group["ci95"],
            "std_over_seeds": group["std"],
            "n": group["n"],
            "n_params": records[0]["n_params"],
            "n_active_params": records[0]["n_active_params"],
            "elapsed_s": sum(r["elapsed_s"] for r in records) / len(records),
            "steps": [r["stop_step"] for r in records],
            "best_steps": [r["best"]["step"] for r in records],
        }
        if pair is not None:
            verdict = {"a_better": "worse", "b_better": "better", "indistinguishable": "indistinguishable"}[pair["verdict"]]
            row |= {"delta_to_before": -pair["delta_nats_per_char"], "delta_ci95": [-x for x in pair["ci95"][::-1]], "verdict": verdict}
            row |= {"p_value": pair["p_value"], "further_seeds": pair["further_seeds"]}
        rows.append(row)
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table for the README."""
    lines = [
        "| rung | what changes | nats/char | 95 % | sd over seeds | parameters (active) | against the rung before |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        low, high = row["ci95"]
        active = "" if row["n_active_params"] == row["n_params"] else f" ({row['n_active_params'] / 1e3:,.0f} k)"
        against = ""
        if "verdict" in row:
            a, b = row["delta_ci95"]
            against = f"{row['verdict']}: {row['delta_to_before']:+.3f} ({a:+.3f} to {b:+.3f})"
            if row["verdict"] == "indistinguishable" and row["further_seeds"]:
                against += f"; about {row['further_seeds']} further seeds would settle it"
        std = "" if row["std_over_seeds"] is None else f"{row['std_over_seeds']:.4f}"
        score = f"{row['nats_per_char']:.4f}"
        cells = [row["rung"], row["change"], score, f"{low:.3f}–{high:.3f}", std, f"{row['n_params'] / 1e3:,.0f} k{active}", against]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def prepare(source: str, chars: int, out: Path) -> int:
    """Write the first `chars` characters of the text; how many there are."""
    text = ""
    for piece in chain.from_iterable(document.pieces for document in open_source(source).documents()):
        text += piece.text
        if chars and len(text) >= chars:
            break
    text = text[:chars] if chars else text
    out.mkdir(parents=True, exist_ok=True)
    (out / "text.txt").write_text(text, encoding="utf-8", newline="")
    return len(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="python-docs")
    parser.add_argument("--chars", type=int, default=0, help="of the text, from its start; 0: all")
    parser.add_argument("--budget", default="60s", help="of training time, or of steps (500steps), for each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rungs", default=",".join(rung.name for rung in RUNGS))
    parser.add_argument("--out", type=Path, help="where runs are kept; default: a folder that is gone afterwards")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rungs = [rung for rung in RUNGS if rung.name in asked.rungs.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        out = (asked.out or Path(temporary)).resolve()
        n_chars = prepare(asked.text, asked.chars, out)
        for seed in range(1, asked.seeds + 1):
            for rung in rungs:
                train(rung, seed, asked.budget, out)
        sides = [f"{rung.name}~*" for rung in rungs]
        done = minigpt("compare", *sides, "--json", out=out)
        if done.returncode:
            sys.exit(done.stderr)
        document = json.loads(done.stdout)
        rows = rows_of(document, rungs, out)
    result = {"text": asked.text, "chars": n_chars, "val_chars": document["n_chars"], "budget": asked.budget, "seeds": asked.seeds}
    print(json.dumps({**result, "rows": rows, "pairs": document["pairs"]}, indent=2) if asked.json else as_markdown(rows))


if __name__ == "__main__":
    main()
