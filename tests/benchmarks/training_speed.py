"""Tokens per second of a full training step against nanoGPT's, on this machine: classic 4 x 128, block 128, batch 64, dropout 0.2.

    python tests/benchmarks/training_speed.py --nanogpt DIR [--rounds 7] [--steps 3] [--threads 0]

A step is forward, backward, clipping to 1.0 and AdamW. Each variant of each side lives in its own process and takes its turn, so that
a busy neighbour slows all alike; figures are medians over rounds. nanoGPT's side uses its own model and optimizer code, eager and
compiled, in float32 and under bfloat16 autocast (its train.py runs float32 on a CPU; the fastest variant is what counts).
Compilation is not counted. Prints JSON: ms per step of each, and the two ratios of ours to nanoGPT's fastest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, BLOCK, VOCAB = 64, 128, 65
SHAPE = {"block_size": BLOCK, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.2}
OURS = {
    "ours fp32": {"precision": "fp32"},
    "ours bf16": {"precision": "bf16"},
    "ours bf16 compiled": {"precision": "bf16", "compile": "on"},
}
THEIRS = {
    f"nanogpt {dtype}{' compiled' * compiled}": {"dtype": dtype, "compiled": compiled}
    for dtype in ("fp32", "bf16")
    for compiled in (False, True)
}


def our_step(precision: str, compile: str = "off") -> Callable[[], None]:
    import torch

    from minigpt_cli.accel.allocator import keep_freed_memory
    from minigpt_cli.config import ClassicConfig, ComputeConfig, OptimConfig, RunConfig
    from minigpt_cli.training.state import TrainingState

    keep_freed_memory()
    optim = OptimConfig(
        optimizer="adamw", lr=2e-4, weight_decay=0.05, grad_clip=1.0, batch_size=BATCH, max_steps=10_000, schedule="constant"
    )
    compute = ComputeConfig(device="cpu", precision=precision, compile=compile, attention="plain")
    state = TrainingState(RunConfig(model=ClassicConfig(**SHAPE), optim=optim, compute=compute), VOCAB, torch.device("cpu"))
    ids = torch.randint(VOCAB, (BATCH, BLOCK + 1))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return lambda: (state.step(100, lambda step, micro: (x, y)), None)[1]


def their_step(folder: str, dtype: str, compiled: bool) -> Callable[[], None]:
    import torch

    sys.path.insert(0, folder)
    with contextlib.redirect_stdout(io.StringIO()):
        from model import GPT, GPTConfig

        model = GPT(GPTConfig(vocab_size=VOCAB, bias=False, **SHAPE))
        optimizer = model.configure_optimizers(0.05, 2e-4, (0.9, 0.98), "cpu")
    forward: Any = torch.compile(model) if compiled else model
    ids = torch.randint(VOCAB, (BATCH, BLOCK + 1))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    autocast = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()

    def step() -> None:
        with autocast:
            _, loss = forward(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def worker(name: str, folder: str, threads: int) -> None:
    """Measure on request: each line on stdin is a number of steps, each answer wall and CPU seconds per step."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    step = our_step(**OURS[name]) if name in OURS else their_step(folder, **THEIRS[name])
    started = time.perf_counter()
    for _ in range(3):
        step()
    print(
        json.dumps({"first_steps_s": time.perf_counter() - started, "torch": torch.__version__, "threads": torch.get_num_threads()}),
        flush=True,
    )
    for line in sys.stdin:
        n, wall, cpu = int(line), time.perf_counter(), time.process_time()
        for _ in range(n):
            step()
        print(json.dumps([(time.perf_counter() - wall) / n, (time.process_time() - cpu) / n]), flush=True)


def measure(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    workers, setup = {}, {}
    for name in names:
        command = [sys.executable, __file__, "--worker", name, "--nanogpt", str(args.nanogpt), "--threads", str(args.threads)]
        workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        setup[name] = json.loads(workers[name].stdout.readline())  # one after another: compiling takes all cores
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name, process in workers.items():
            process.stdin.write(f"{args.steps}\n")
            process.stdin.flush()
            times[name].append(json.loads(process.stdout.readline()))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    result = {}
    for name in names:
        wall = statistics.median(t[0] for t in times[name])
        result[name] = {
            "ms_per_step": round(wall * 1e3, 1),
            "fastest_ms": round(min(t[0] for t in times[name]) * 1e3, 1),
            "cpu_ms_per_step": round(statistics.median(t[1] for t in times[name]) * 1e3, 1),
            "tokens_per_s": round(BATCH * BLOCK / wall),
            "first_three_steps_s": round(setup[name]["first_steps_s"], 1),
        }
    return {"variants": result, "torch": setup[names[0]]["torch"], "threads": setup[names[0]]["threads"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--only", help="comma-separated variants")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, str(args.nanogpt), args.threads)
        return
    names = args.only.split(",") if args.only else [*OURS, *THEIRS]
    result = measure(names, args)
    ms = {name: v["ms_per_step"] for name, v in result["variants"].items()}
    fastest = {
        dtype: min((v, k) for k, v in ms.items() if k.startswith("nanogpt") and dtype in k)
        for dtype in ("fp32", "")
        if any(k.startswith("nanogpt") and dtype in k for k in ms)
    }
    ours = [v for k, v in ms.items() if k.startswith("ours")]
    if ours and "" in fastest:
        result["ratio"] = {"fastest of each": round(fastest[""][0] / min(ours), 2), "nanogpt's fastest": fastest[""][1]}
    if "ours fp32" in ms and "fp32" in fastest:
        result["ratio_float32"] = round(fastest["fp32"][0] / ms["ours fp32"], 2)
    print(json.dumps({"benchmark": "training_speed", "machine": platform.processor() or platform.machine(), **result}, indent=2))


if __name__ == "__main__":
    main()
