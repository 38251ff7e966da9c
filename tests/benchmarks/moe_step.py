"""Time of a training step of a mixture of experts against the dense model of equal active parameters.

    python tests/benchmarks/moe_step.py [--rounds 9] [--steps 2] [--precision bf16] [--threads 0]

Two pairs, both 4 x 128 on 48 windows of 192: the preset modern_moe_char_02 (4 experts of 2 C, top 1) against its dense control, and 4
experts of 4/3 C, top 2, against a feed-forward of 8/3 C. Steps are full (clipping and AdamW included) and interleaved in one process;
figures are medians. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from minigpt_cli.accel.allocator import keep_freed_memory
from minigpt_cli.config import ComputeConfig, ModelConfig, ModernConfig, MoEConfig, OptimConfig, RunConfig
from minigpt_cli.training.state import TrainingState

BATCH, BLOCK, VOCAB = 48, 192, 65
SHAPE = {"block_size": BLOCK, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.24}
PAIRS: dict[str, tuple[ModelConfig, ModelConfig]] = {
    "top 1 of 4": (MoEConfig(**SHAPE, ffn_mult=2, moe_top_k=1, moe_aux_loss_coef=0.0015), ModernConfig(**SHAPE, ffn_mult=2)),
    "top 2 of 4": (MoEConfig(**SHAPE, ffn_mult=4 / 3, moe_top_k=2), ModernConfig(**SHAPE, ffn_mult=8 / 3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=15, help="rounds before: every new shape of a product is compiled once")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    optim = OptimConfig(optimizer="adamw", lr=2e-4, grad_clip=1.0, batch_size=BATCH, max_steps=10_000, schedule="constant")
    compute = ComputeConfig(device="cpu", precision=args.precision, compile="off", attention="plain")
    ids = torch.randint(VOCAB, (BATCH, BLOCK + 1), generator=torch.Generator().manual_seed(0))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    states = {}
    for name, pair in PAIRS.items():
        for kind, config in zip(("moe", "dense"), pair, strict=True):
            states[name, kind] = TrainingState(RunConfig(model=config, optim=optim, compute=compute), VOCAB, torch.device("cpu"))
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in states}
    for turn in range(args.warmup + args.rounds):
        for key, state in states.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for step in range(args.steps):
                state.step(turn * args.steps + step, lambda *_: (x, y))
            if turn >= args.warmup:
                times[key].append(((time.perf_counter() - wall) / args.steps, (time.process_time() - cpu) / args.steps))

    result = {}
    for name in PAIRS:
        row = {}
        for kind in ("moe", "dense"):
            wall, cpu = (statistics.median(t[i] for t in times[name, kind]) * 1e3 for i in (0, 1))
            row[kind] = {
                "ms_per_step": round(wall, 1),
                "cpu_ms_per_step": round(cpu, 1),
                "n_active_params": states[name, kind].model.n_active_params(),
            }
        paired = statistics.median(m[0] / d[0] for m, d in zip(times[name, "moe"], times[name, "dense"], strict=True))
        result[name] = row | {
            "ratio": round(paired, 3),
            "ratio_cpu": round(row["moe"]["cpu_ms_per_step"] / row["dense"]["cpu_ms_per_step"], 3),
        }
    print(
        json.dumps(
            {
                "benchmark": "moe_step",
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "precision": args.precision,
                **result,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
