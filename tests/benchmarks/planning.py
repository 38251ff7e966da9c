"""What the planner knows: a table of short runs, the law fitted to it, and what it plans.

For whoever changes the planner, and whoever doubts it.

    python tests/benchmarks/planning.py table --texts FOLDER     trains the rows of `design` that planning.csv lacks
    python tests/benchmarks/planning.py fit                      fits the law to planning.csv, and shows what it misses
    python tests/benchmarks/planning.py plans                    what is planned for simulated machines

Rows are trained by a number of tokens and not of seconds, so that a busy machine changes nothing; several processes share the table.
regret.py compares plans with searches.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minigpt_cli.config import ComputeConfig, DataConfig, EvalConfig, ModernConfig, OptimConfig, RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.training import memory, plan
from minigpt_cli.training.device_batches import DeviceBatches
from minigpt_cli.training.distributed import World
from minigpt_cli.training.evaluator import Evaluator
from minigpt_cli.training.law import LAW, Law, Training
from minigpt_cli.training.machine import Machine
from minigpt_cli.training.state import TrainingState
from minigpt_cli.training.vocabularies import FEWEST_CHARS, Text, cut_s, parts, possible, present

TABLE = Path(__file__).with_suffix(".csv")
M = 1_000_000
TEXTS: dict[str, dict[str, Any]] = {
    "shakespeare": {"source": "tinyshakespeare.txt"},
    "persuasion": {"source": "books/Persuasion.md"},
    "dracula": {"source": "books/Dracula.md"},
    "emma": {"source": "emma150.txt"},  # the first 150,000 bytes of books/Emma.md
    "emma30": {"source": "emma30.txt"},  # its first 30,000
    "play150": {"source": "play150.txt"},  # of Tiny Shakespeare
    "play30": {"source": "play30.txt"},
    "tom30": {"source": "tom30.txt"},  # of books/The Adventures of Tom Sawyer.md
    "dracula150": {"source": "dracula150.txt"},
    "latin150": {"source": "latin150.txt"},  # of Cicero's De oratore II
    "latin30": {"source": "latin30.txt"},  # of his Laelius de amicitia
    "code": {"source": "code.txt"},  # 553 KB of Python's library
    "code150": {"source": "code150.txt"},
    "wiki": {"source": "wiki.txt"},  # WikiText-2's validation text
    "moby150": {"source": "moby150.txt"},
    "dorian30": {"source": "dorian30.txt"},  # of The Picture of Dorian Gray
    "treasure": {"source": "treasure.txt"},  # Treasure Island, 365 KB
    "wuthering": {"source": "books/Wuthering Heights.md"},
    "books": {"source": "allbooks.txt"},
    "novels": {"source": "novels.txt"},  # the same ten in another order
    "names": {"source": "names.txt", "documents": "lines"},
    "latin": {"source": "latin"},
    "tang": {"source": "tang", "text_field": "paragraphs"},  # poems of the Tang
    "ci": {"source": "ci", "text_field": "paragraphs"},  # songs of the Song
    "prose": {"source": "big.txt"},
}
PLAIN: dict[str, Any] = {"tokenizer": "char", "vocab_size": 1024, "max_chars": 0, "block": 128, "batch": 16, "dropout": 0.0, "decay": 0.1}
PLAIN |= {"muon_lr": 0.03, "lr": 6e-3, "ema": 0.99, "cooldown": 0.6, "seed": 1}
_FEWEST_ROWS = 4  # of a text that shows how well the law knows it
_SCALE_PULL, _PULL = 0.003, 0.1  # of a text's scale to 1, and of the logarithm of a coefficient to where it was
_LARGE_MISS = 0.06  # nats per character
_BEHIND = {0.2: 0.25, 0.45: 0.1}  # share of the steps: nats per character behind a rival that nobody catches up with
_LARGE_SPLIT = 150_000  # tokens: of a larger validation split, batches are drawn


def row(text: str, shape: tuple[int, int, int], tokens: float, **others: Any) -> dict[str, Any]:
    """A training: text, (layers, width, heads), tokens, and what differs from PLAIN."""
    return {"text": text, "shape": shape, "tokens": int(tokens), **PLAIN, **others}


S, SM, M4, L6 = (2, 64, 2), (3, 96, 3), (4, 128, 4), (6, 192, 6)


def design() -> list[dict[str, Any]]:
    """The rows, those first that say most."""
    fifth, half, one, two, four, eight = (t * M for t in (0.15, 0.5, 1, 2, 4, 8))
    play = partial(row, "shakespeare")
    rows = [play(s, t) for t in (half, one) for s in (S, SM, M4)] + [play(S, two), play(S, four), play(SM, two), play(M4, two)]
    for n, t in ((27_000, half), (135_000, one)):
        rows += [play(s, t, max_chars=n, dropout=d) for s in (S, M4) for d in (0.0, 0.2)]
    rows += [play(S, half, batch=b) for b in (4, 8, 32)] + [play(S, one, block=b, batch=2048 // b) for b in (64, 256)]
    rows += [row("books", S, one, tokenizer=k) for k in ("char", "bpe")] + [row("books", SM, half, tokenizer=k) for k in ("char", "bpe")]
    rows += [play(s, fifth, max_chars=27_000) for s in (S, M4, L6)] + [play(S, one, tokenizer="bpe"), play(SM, half, tokenizer="bpe")]
    rows += [row(text, S, half) for text in ("names", "latin", "tang")] + [play(S, half, muon_lr=x) for x in (0.015, 0.06)]
    rows += [play(L6, half), play(L6, half, muon_lr=0.02), play(S, one, batch=4), play(S, one, batch=32), play(M4, half, batch=8)]
    rows += [play(s, half, max_chars=135_000) for s in (S, SM, M4, L6)] + [row("books", M4, one, tokenizer="bpe"), row("books", M4, one)]
    rows += [
        row("names", SM, half),
        row("latin", S, one, tokenizer="bpe"),
        row("latin", S, one),
        row("tang", S, half, tokenizer="bpe", vocab_size=4096),
    ]
    rows += [play(SM, two, max_chars=135_000, dropout=d) for d in (0.0, 0.1)] + [
        row("books", S, one, tokenizer="bpe", vocab_size=v) for v in (512, 2048)
    ]
    rows += [play(M4, half, block=256, batch=8), play(M4, half, batch=32), play(S, one, lr=3e-3), play(S, one, lr=1.2e-2), play(SM, four)]
    rows += [row("persuasion", s, one) for s in (S, SM, M4)] + [
        row("names", S, one, dropout=0.1),
        play(S, eight),
        play(L6, one),
        play(M4, four),
    ]
    rows += [row("persuasion", SM, four, dropout=d) for d in (0.0, 0.1)] + [
        play(S, four, max_chars=135_000, dropout=0.1),
        play(M4, eight, dropout=0.1),
    ]
    for text in ("treasure", "moby150", "wiki"):  # for the law to be judged by
        rows += [row(text, s, half) for s in (S, SM, M4)] + [row(text, S, one), row(text, M4, one), row(text, S, one, tokenizer="bpe")]
    for shape, tokens, sizes in ((SM, two, (512, 1024, 2048)), (M4, four, (1024, 2048)), ((2, 96, 3), one, (512, 2048))):
        rows += [row("novels", shape, tokens, tokenizer="bpe", vocab_size=size) for size in sizes]
    return [r for i, r in enumerate(rows) if r not in rows[:i]]


ASKED = ("text", "layers", "width", "heads", "tokens", *PLAIN)
FOUND = ("steps", "n_params", "vocab", "train_tokens", "train_chars", "letters", "gain", "best", "best_step", "last", "train_loss", "cpu_s")
_TEXTUAL = ("text", "tokenizer")


def flat(r: dict[str, Any]) -> dict[str, Any]:
    """A row as the table has it."""
    return {"text": r["text"], **dict(zip(("layers", "width", "heads"), r["shape"], strict=True)), **{k: r[k] for k in ("tokens", *PLAIN)}}


def rows() -> list[dict[str, Any]]:
    """The rows of the table."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return [{name: v if name in _TEXTUAL else json.loads(v) for name, v in r.items()} for r in csv.DictReader(file)]


def write(new: Iterable[dict[str, Any]]) -> None:
    """Append rows to the table."""
    first = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, (*ASKED, *FOUND), lineterminator="\n")
        if first:
            writer.writeheader()
        writer.writerows(new)


def config_of(r: dict[str, Any], n_val_tokens: int) -> RunConfig:
    """The configuration of a row."""
    layers, width, heads = r["shape"]
    model = ModernConfig(n_layer=layers, n_embd=width, n_head=heads, block_size=r["block"], dropout=r["dropout"])
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


def train(r: dict[str, Any], dataset: Dataset, rival: Sequence[float] = ()) -> dict[str, Any]:
    """What the training of a row found: the best and the last loss in nats per character, and the training loss at the end."""
    return train_taught(r, dataset, rival)[0]


def train_taught(
    r: dict[str, Any], dataset: Dataset, rival: Sequence[float] = (), teacher: nn.Module | None = None
) -> tuple[dict[str, Any], nn.Module]:
    """The same, with a teacher if there is one, and the best model. A training that is too far behind what `rival` (its losses at the
    places of _BEHIND and at the end) had lost by then, and 0.22 above its end, is stopped."""
    config, device = config_of(r, len(dataset.val.tokens)), torch.device("cpu")
    begun = time.process_time()
    state = TrainingState(config, dataset.tokenizer.vocab_size, device, World(), teacher=teacher)
    kept: dict[str, Tensor] = {}
    batches, evaluator = DeviceBatches(config, dataset, device, World()), Evaluator(config, dataset, state)
    passes = r["tokens"] / len(dataset.train.tokens)
    steps, checks = config.optim.max_steps, 2 + min(8, int(passes / 2))
    due = {math.ceil(steps * (i + 1) / checks) for i in range(checks)}
    places = {math.ceil(share * steps): behind for share, behind in _BEHIND.items()}
    curve, watched = [], []
    for step in range(steps):
        state.step(step, batches)
        if step + 1 in due | set(places):
            m = evaluator()
            curve.append((step + 1, m.nats_per_char, m.train_loss))
            if m.nats_per_char == min(c[1] for c in curve):
                kept = state.measured_weights()
        if step + 1 in places:
            watched.append(round(curve[-1][1], 5))
            if rival and watched[-1] > max(rival[len(watched) - 1] + places[step + 1], rival[-1] + 0.22):
                break
    best_step, best, _ = min((c for c in curve if c[1] is not None), key=lambda c: c[1])
    n_params = sum(p.numel() for p in state.model.parameters())
    state.model.load_state_dict(kept)
    return {
        "steps": steps,
        "n_params": n_params,
        "vocab": dataset.tokenizer.vocab_size,
        "train_tokens": len(dataset.train.tokens),
        "train_chars": dataset.train.n_chars,
        "letters": round(present(dataset).letters, 4),
        "best": round(best, 5),
        "best_step": best_step,
        "last": round(curve[-1][1], 5),
        "watched": watched,
        "train_loss": round(curve[-1][2], 5),
        "cpu_s": round(time.process_time() - begun, 1),
    }, state.model


def table(folder: Path) -> None:
    """Train the rows that the table lacks; several processes share them."""
    torch.set_num_threads(1)
    done = {tuple(r[name] for name in ASKED) for r in rows()}
    claims = TABLE.with_suffix(".claims")
    claims.mkdir(exist_ok=True)
    for r in design():
        key = tuple(flat(r)[name] for name in ASKED)
        try:
            (claims / hashlib.sha256(repr(key).encode()).hexdigest()[:16]).mkdir()
        except FileExistsError:
            continue
        if key in done:
            continue
        given = TEXTS[r["text"]]
        cut = {name: r[name] for name in ("tokenizer", "vocab_size", "max_chars")}
        data = DataConfig(**{**given, **cut, "source": str(folder / given["source"])})
        found = train(r, prepared(data, None, lambda step: None)) | {"gain": gain(data)}
        write([{**flat(r), **{name: found[name] for name in FOUND}}])


def gain(data: DataConfig) -> float:
    """What the planner measures of these tokens; 1 for those that it does not offer."""
    plain = prepared(data.model_copy(update={"tokenizer": "char"}), None, lambda step: None)
    wanted = (data.tokenizer, data.vocab_size)
    return next((round(t.gain, 4) for t in possible(RunConfig(data=data), (), plain) if (t.tokenizer, t.vocab_size) == wanted), 1.0)


# ---- the law


def training_of(r: dict[str, Any]) -> Training:
    """What the law needs to know of a row."""
    step_tokens = r["batch"] * r["block"]
    size = 12 * r["layers"] * r["width"] ** 2
    cut = r["train_tokens"], r["vocab"], r["letters"], r["gain"]
    return Training(size, r["steps"] * step_tokens, step_tokens, r["dropout"], *cut, r["block"])


def misses(law: Law, chosen: Sequence[dict[str, Any]]) -> np.ndarray:
    """Loss less expected loss of each row, where every text (and every part of one that is trained on alone) has a floor of its own and a
    scale, which is pulled to 1: a plan depends on neither."""
    expected = np.array([law.nats_per_char(training_of(r)) for r in chosen])
    found = np.array([r["best"] for r in chosen])
    of_text = defaultdict(list)
    for i, r in enumerate(chosen):
        of_text[r["text"], r["max_chars"]].append(i)
    for mine in of_text.values():
        e, f = expected[mine] - expected[mine].mean(), found[mine] - found[mine].mean()
        found[mine] = f - e * np.clip((e @ f + _SCALE_PULL) / (e @ e + _SCALE_PULL), 0.6, 1.6)
    return found


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def fitted(chosen: Sequence[dict[str, Any]], start: Law) -> Law:
    """The law with the least misses near `start` (Levenberg 1944; Marquardt 1963). What the rows leave open stays as it was: the logarithm
    of each coefficient is pulled there, and the exponents that decide how large a model and a batch are for much more text and time than
    was measured are kept. Large misses count by their size and not by its square (Huber 1964); longer trainings count more."""
    kept = ("floor", "small_power", "unseen_power", "batch_power", "by_heart", "by_heart_power")
    names = [name for name in Law._fields if name not in kept]
    origin = np.log([getattr(start, name) for name in names])

    def law(x: np.ndarray) -> Law:
        return start._replace(**dict(zip(names, np.exp(x).tolist(), strict=True)))

    def cost(x: np.ndarray) -> np.ndarray:
        missed = misses(law(x), chosen)
        far = np.maximum(np.abs(missed), _LARGE_MISS)
        return np.concatenate([weight * missed * np.sqrt((2 * far - _LARGE_MISS) * _LARGE_MISS) / far, _PULL * (x - origin)])

    weight = np.clip([math.sqrt(training_of(r).tokens / M) for r in chosen], 0.5, 5.0)
    x, damping = origin, 1e-2
    now = cost(x)
    for _ in range(100):
        slopes = np.stack([(cost(x + d) - now) / 1e-4 for d in 1e-4 * np.eye(len(x))], 1)
        curvature = slopes.T @ slopes
        moved = x - np.clip(np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), slopes.T @ now), -0.5, 0.5)
        then = cost(moved)
        if then @ then >= now @ now:
            damping *= 4
            continue
        gained, x, now, damping = now @ now - then @ then, moved, then, damping / 3
        if gained < 1e-7 * (now @ now):
            break
    return law(x)


def _is_of_the_law(r: dict[str, Any]) -> bool:
    """Whether the law is for such a row: at usual rates, of steps enough, and best when its rate had nearly fallen."""
    return bool(0.015 <= r["muon_lr"] <= 0.045 and r["steps"] >= 100 and r["best_step"] >= 0.75 * r["steps"])


def fit(held_out: Sequence[str]) -> None:
    """Fit to the texts that are not held out, and print the coefficients and the misses of every text."""
    everything = [r for r in rows() if _is_of_the_law(r)]
    known = [r for r in everything if r["text"] not in held_out]
    law = fitted(known, LAW)
    print("| coefficient | fitted | in the package |\n|---|---:|---:|")
    for name, value in law._asdict().items():
        print(f"| {name} | {value:.3g} | {getattr(LAW, name):.3g} |")
    print("\n| text | rows | fitted to | rms miss, fitted | in the package |\n|---|---:|---|---:|---:|")
    for text in sorted({r["text"] for r in everything}):
        mine = [r for r in everything if r["text"] == text]
        if len(mine) < _FEWEST_ROWS:
            continue  # its floor and its scale explain them
        seen = "no" if text in held_out else "yes"
        print(f"| {text} | {len(mine)} | {seen} | {rms(misses(law, mine)):.4f} | {rms(misses(LAW, mine)):.4f} |")


# ---- plans

MACHINES = {  # rates that a training reaches, about a third of what the makers name; delays of eager PyTorch
    "two cores, AVX-512": Machine(600e9, 20e9, 1.5e-3),  # 43 ms for 4 x 128, 16 x 128 tokens; 38 to 54 were measured
    "laptop, eight cores, AVX2": Machine(300e9, 20e9, 1e-3),
    "M1 (GPU)": Machine(1.2e12, 40e9, 1.5e-3),
    "T4": Machine(15e12, 150e9, 8e-4),
    "A100": Machine(110e12, 1e12, 6e-4),
    "H200": Machine(350e12, 3e12, 5e-4),
}
PAIRS = {512: (2.15, 1.72, 1.34), 1024: (2.75, 1.93, 1.46), 2048: (3.2, 2.06, 1.51)}  # characters, letters, gain: ten English books


def simulated(chars: int, budget: float) -> list[Text]:
    """English of so many characters, in every way that it may be cut within the budget."""
    train, val = chars * 9 // 10, chars // 10
    texts = [Text("char", 65, train, val, 1.0)]
    if train < FEWEST_CHARS:
        return texts
    return texts + [
        Text("bpe", v, round((part or train) / c), round(val / c), c, h, g, False, cut_s(part or train, val, v), part)
        for v, (c, h, g) in PAIRS.items()
        for part in parts(train, val, budget)
    ]


def plans() -> None:
    """Print what is planned for English of three sizes, three budgets and simulated machines."""
    memory.available = lambda device: 16 << 30
    print("| machine | text | 1 minute | 10 minutes | 1 hour |\n|---|---|---|---|---|")
    for name, machine in MACHINES.items():
        for label, chars in (("30 KB", 30_000), ("1.1 MB", 1_100_000), ("100 MB", 100_000_000)):
            cells = []
            for budget in (60, 600, 3600):
                c = plan.best(RunConfig().changed(optim={"time_budget": float(budget)}), (), simulated(chars, budget), machine).config
                m: Any = c.model
                tokens = f"bpe {c.data.vocab_size}" if c.data.tokenizer == "bpe" else "char"
                others = f", dropout {m.dropout:g}" if m.dropout else ""
                if c.data.max_chars:
                    others += f", of {c.data.max_chars / M:g} M characters"
                if n := c.distil.teachers:
                    others += f", {n} teacher{'s' * (n > 1)}"
                cells.append(f"{m.n_layer} x {m.n_embd}, {tokens}, {c.optim.batch_size} x {m.block_size}{others}")
            print(f"| {name} | {label} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("--texts", type=Path, required=True)
    fits = commands.add_parser("fit")
    fits.add_argument("--held-out", nargs="*", default=["moby150", "tang", "treasure", "wiki"])
    commands.add_parser("plans")
    given = parser.parse_args()
    match given.command:
        case "table":
            table(given.texts)
        case "fit":
            fit(given.held_out)
        case "plans":
            plans()


if __name__ == "__main__":
    main()
