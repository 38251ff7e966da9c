"""How often is `minigpt runs diagnose` right? Ten faults and healthy runs on several texts, made on purpose.

    python tests/benchmarks/doctor.py TEXT TEXT TEXT [--out DIR] [--seeds 3]

Every case is a run of a few seconds on one thread, trained through the command line in this process; typed again, what is done is not
done again. What `diagnose` reads of each case is written to tests/evaluation/diagnosis_cases.jsonl. Thresholds are then fitted on one half
of the cases and tested on the other, and the same with the halves exchanged, so that every case is judged once by thresholds that never
saw it: these are the hit rates. The thresholds of all cases and the hit rates are written to minigpt_cli/evaluation/diagnosis.json; JSON
on stdout has the misses. Without texts only this last part is done, from the cases that are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from minigpt_cli.cli import run as minigpt
from minigpt_cli.evaluation import diagnosis
from minigpt_cli.evaluation.diagnosis import Symptoms, Thresholds, faults_of, symptoms_of, to_json
from minigpt_cli.evaluation.evaluate_run import baselines_of, kept_score
from minigpt_cli.runstore.directory import Run
from minigpt_cli.training import evaluator

CHARS = 150_000
"""Of each text."""
COMMON = "--max-steps 200 --eval-every 15 --threads 1 --device cpu --precision bf16 --attention plain --compile off --json"
TRAIN_SAMPLE = 8192
"""Tokens on which the training loss is measured, a quarter of the usual: evaluations are half the time of so small a run."""
SMALL = "--preset tiny-run"
MOE = f"{SMALL} --arch moe --moe-balance none"
CLASSIC_ADAMW = f"{SMALL} --arch classic --optimizer adamw"

FAULTS: dict[str, tuple[str, str, str]] = {
    "rate too high": (f"{SMALL} --muon-lr 3 --lr 0.5", f"{SMALL} --optimizer adamw --lr 0.15", f"{CLASSIC_ADAMW} --lr 0.05"),
    "rate too low or stopped early": (
        f"{SMALL} --muon-lr 5e-4 --lr 1e-4",
        f"{CLASSIC_ADAMW} --lr 1e-4",
        f"{SMALL} --patience 1 --min-delta 0.2",
    ),
    "overfitting": (f"{SMALL} --max-chars 15000", f"{SMALL} --arch classic --max-chars 8000", f"{SMALL} --n-embd 96 --max-chars 20000"),
    "too little text": (f"{SMALL} --max-chars 2000", f"{SMALL} --arch classic --max-chars 1000", f"{SMALL} --n-embd 96 --max-chars 3000"),
    "context unused": (
        "--arch bigram --block-size 64 --batch-size 64 --optimizer adamw --lr 0.3 --ema 0.9",
        f"{SMALL} --block-size 1 --batch-size 1024",
        f"{SMALL} --block-size 2 --batch-size 512",
    ),
    "leak between splits": (SMALL, SMALL, f"{SMALL} --arch classic"),
    "validation unlike training": (SMALL, SMALL, f"{SMALL} --arch classic"),
    "evaluation too noisy": (
        f"{SMALL} --eval-iters 1 --batch-size 8 --grad-accum 2",
        f"{SMALL} --train-frac 0.996",
        f"{SMALL} --eval-iters 2 --batch-size 4 --grad-accum 4",
    ),
    "dead experts": (f"{MOE} --n-experts 16 --moe-top-k 1", f"{MOE} --n-experts 12 --moe-top-k 2", f"{MOE} --n-experts 8 --moe-top-k 1"),
    "diverged": (f"{SMALL} --muon-lr 10 --lr 10", f"{CLASSIC_ADAMW} --lr 10 --precision fp32", f"{SMALL} --arch moe --muon-lr 10 --lr 10"),
}
"""The settings that make each fault, in three ways; two faults are made in the text (`faulty_text`)."""

HEALTHY = (
    SMALL,
    f"{SMALL} --arch classic",
    f"{SMALL} --arch moe",
    f"{SMALL} --optimizer adamw --lr 6e-3",
    f"{SMALL} --dropout 0.1",
    f"{SMALL} --tokenizer bpe --vocab-size 300",
    f"{SMALL} --tokenizer byte --schedule cosine",
    f"{SMALL} --n-layer 1 --block-size 32 --batch-size 32",
    f"{SMALL} --muon-lr 0.015 --lr 3e-3",
    f"{SMALL} --n-embd 96 --max-steps 150 --eval-every 10 --weight-decay 0.3",
)


@dataclass(frozen=True)
class Case:
    """A run to be made: what is wrong with it, and the command that makes it."""

    name: str
    fault: str  # "healthy": nothing
    text: Path
    flags: str
    seed: int


def cases(texts: list[Path], seeds: int, out: Path) -> list[Case]:
    """Every case, in an order in which any beginning has a bit of everything."""
    found = []
    for seed, t in sorted(product(range(seeds), range(len(texts))), key=lambda pair: ((pair[1] - pair[0]) % len(texts), pair)):
        for f, (fault, ways) in enumerate(FAULTS.items()):
            where = faulty_text(fault, seed % 3, t, texts, out)
            found.append(Case(f"f{f}-{t}-{seed}", fault, where, ways[seed % 3], 100 * seed + 10 * t + f))
    healthy = [
        Case(f"ok{h}-{t}", "healthy", text, flags, 1000 + 10 * t + h) for h, flags in enumerate(HEALTHY) for t, text in enumerate(texts)
    ]
    return [case for both in zip(*[iter(found)] * 3, healthy, strict=False) for case in both] if seeds == 3 else [*found, *healthy]


def faulty_text(fault: str, way: int, t: int, texts: list[Path], out: Path) -> Path:
    """The text with the faults that are in texts: a validation split that was seen in training, or one that is of another kind."""
    own = texts[t].read_text(encoding="utf-8")
    cut = int(0.9 * len(own))
    if fault == "leak between splits":
        copied = own[cut // 2 :][: len(own) - cut]
        if way == 1:
            copied = copied[: len(copied) // 2] + own[cut + len(copied) // 2 :]
        elif way == 2:
            copied = "".join(c if i % 90 else "e" for i, c in enumerate(copied))
        changed = own[:cut] + copied
    elif fault == "validation unlike training":
        other = texts[(t + 1 + way) % len(texts)].read_text(encoding="utf-8")
        changed = own[:cut] + (own[cut:].swapcase() if way == 2 else other[: len(own) - cut])
    else:
        return texts[t]
    path = out / "texts" / f"{fault.replace(' ', '-')}-{t}-{way}.txt"
    path.write_text(changed, encoding="utf-8")
    return path


def is_done(case: Case, out: Path) -> bool:
    """Whether the run of a case has ended."""
    record = out / "runs" / case.name / "run.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["status"] in ("finished", "failed")


def train(case: Case, out: Path) -> None:
    """Make the run of a case, unless it is there."""
    if is_done(case, out):
        return
    if (out / "runs" / case.name).is_dir():
        minigpt(["runs", "rm", case.name, "--yes"])
    with open(os.devnull, "w") as null, redirect_stdout(null):
        settings = [*shlex.split(COMMON), *shlex.split(case.flags)]
        code = minigpt(["train", str(case.text), "--name", case.name, "--seed", str(case.seed), *settings])
    if code > 128:  # a signal, which ended this run and is to end all
        raise SystemExit(code)


# ---- from runs to thresholds and hit rates

PACKAGED = Path(diagnosis.__file__).with_name("diagnosis.json")
KEPT = Path(__file__).resolve().parents[1] / "evaluation" / "diagnosis_cases.jsonl"
GRIDS: dict[str, list[float]] = {
    "blown_up": [1.3, 1.6, 2, 3, 5, 8],
    "leak": [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5],
    "xz": [0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7],
    "noise": [0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14],
    "expert": [0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4],
    "gap": [0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4],
    "rise": [0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15],
    "tokens_per_param": [0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.13],
    "train_rise": [0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5],
    "rate_high": [3, 5, 8, 12, 16, 20, 30],
    "rate_low": [0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3],
    "unlearned": [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6],
    "fall": [0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2],
    "context": [0.03, 0.06, 0.1, 0.13, 0.16, 0.2, 0.25],
    "near_pairs": [0.05, 0.08, 0.1, 0.15, 0.2, 0.3],
}
"""The values that each threshold may take."""
BLAMED = 2
"""How many missed faults one blamed healthy run is as bad as."""

Known = list[tuple[str, str, Symptoms]]


def symptoms(case: Case, out: Path) -> Symptoms:
    """What `diagnose` reads of a case."""
    run = Run(out / "runs" / case.name)
    score = kept_score(run)
    return symptoms_of(run, baselines_of(run, score) if score else None)


def read_cases() -> Known:
    """Name, fault and symptoms of every case that is kept."""
    rows = [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]
    return [(row["case"], row["fault"], Symptoms(**row["symptoms"])) for row in rows]


def halves(known: Known) -> tuple[Known, Known]:
    """The cases, every second one of each fault in the second half."""
    seen: Counter[str] = Counter()
    parts: tuple[Known, Known] = ([], [])
    for case in known:
        parts[seen[case[1]] % 2].append(case)
        seen[case[1]] += 1
    return parts


def fitted(known: Known) -> Thresholds:
    """The thresholds that name most faults of these cases and blame fewest healthy runs; of equally good values the middle one."""
    chosen = {name: values[len(values) // 2] for name, values in GRIDS.items()}
    shown = [case[2] for case in known]
    for _ in range(2):
        for name, values in GRIDS.items():
            worth = []
            for value in values:
                said = faults_of(shown, {**chosen, name: value})
                pairs = [(fault, word) for (_, fault, _), word in zip(known, said, strict=True)]
                worth.append(-sum(BLAMED if fault == "healthy" else 1 for fault, word in pairs if fault != word))
            tied = [value for value, good in zip(values, worth, strict=True) if good == max(worth)]
            chosen[name] = tied[len(tied) // 2]
    return chosen


def judged(known: Known) -> list[tuple[str, str, str]]:
    """Name, fault and what is said of every case, by thresholds that were fitted on the other half."""
    first, second = halves(known)
    found = []
    for ours, others in ((first, second), (second, first)):
        said = faults_of([case[2] for case in ours], fitted(others))
        found += [(name, fault, word) for (name, fault, _), word in zip(ours, said, strict=True)]
    return found


def verdict(known: Known) -> dict[str, Any]:
    """The content of diagnosis.json: thresholds, and for each finding in how many known cases it was right, and made."""
    said = judged(known)
    rates = {word: [sum(word == fault for _, fault, w in said if w == word), sum(w == word for _, _, w in said)] for word in FAULTS}
    return {"thresholds": fitted(known), "hit_rates": rates}


def report(known: Known) -> dict[str, Any]:
    """How often each fault is named and healthy runs are blamed, and every miss."""
    said = judged(known)
    named = {f: [sum(f == word for _, fault, word in said if fault == f), sum(fault == f for _, fault, _ in said)] for f in FAULTS}
    healthy = [word for _, fault, word in said if fault == "healthy"]
    return {
        "misses": [f"{name}: {fault}, said {word}" for name, fault, word in said if word != fault],
        "named": named,
        "blamed": [sum(word != "healthy" for word in healthy), len(healthy)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("doctor"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.texts:
        make(arguments.texts, arguments.seeds, arguments.out.resolve())
    known = read_cases()
    content = "".join(f'  "{name}": {json.dumps(value)},\n' for name, value in verdict(known).items()).removesuffix(",\n")
    PACKAGED.write_text("{\n" + content + "\n}\n", encoding="utf-8")
    print(json.dumps(report(known), indent=2))


def make(sources: list[Path], seeds: int, out: Path) -> None:
    """Train what is not trained yet, and keep what `diagnose` reads of each run; interrupted, it keeps those that are done."""
    todo = planned(sources, seeds, out)
    try:
        train_all(todo, out)
    finally:
        done = [case for case in todo if is_done(case, out)]
        rows = [{"case": case.name, "fault": case.fault, "symptoms": to_json(symptoms(case, out))} for case in done]
        KEPT.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows), encoding="utf-8")


def planned(sources: list[Path], seeds: int, out: Path) -> list[Case]:
    """Every case, with its text written to `out`, where runs and token files will be too."""
    (out / "texts").mkdir(parents=True, exist_ok=True)
    os.environ["MINIGPT_RUNS_DIR"], os.environ["MINIGPT_DATA_DIR"] = str(out / "runs"), str(out / "data")
    evaluator.TRAIN_SAMPLE_TOKENS = TRAIN_SAMPLE
    texts = []
    for n, path in enumerate(sources):
        texts.append(out / "texts" / f"{n}.txt")
        texts[-1].write_text(path.read_text(encoding="utf-8")[:CHARS], encoding="utf-8")
    return cases(texts, seeds, out)


def train_all(todo: list[Case], out: Path) -> None:
    """Make the runs of these cases, one after the other."""
    for n, case in enumerate(todo):
        print(f"{n}/{len(todo)} {case.name} {case.fault}", file=sys.stderr, flush=True)
        train(case, out)


if __name__ == "__main__":
    main()
