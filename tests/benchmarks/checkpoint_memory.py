"""Peak memory of a training step with --grad-checkpoint against without, 12 layers x 384, block 256.

    python tests/benchmarks/checkpoint_memory.py [--arch modern] [--batch 16] [--precision bf16] [--device cpu]

Each variant runs in its own process. On a CPU the peak is that of the process's resident memory above what it held before the first
step, with the model and AdamW's averages allocated; on a GPU torch's own count of allocated bytes less the same.
Prints JSON with both and the saving.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

VOCAB = 65
SHAPE = {"block_size": 256, "n_layer": 12, "n_head": 6, "n_embd": 384}


def measure(arch: str, batch: int, precision: str, device: str, checkpoint: bool) -> dict[str, float]:
    import torch

    from minigpt_cli.config import ClassicConfig, ComputeConfig, ModernConfig, OptimConfig, RunConfig
    from minigpt_cli.training.state import TrainingState

    optim = OptimConfig(optimizer="adamw", batch_size=batch, max_steps=100, schedule="constant")
    compute = ComputeConfig(
        device=device, precision=precision, compile="off", attention="plain" if device == "cpu" else "sdpa", grad_checkpoint=checkpoint
    )
    model = {"classic": ClassicConfig, "modern": ModernConfig}[arch](**SHAPE)
    state = TrainingState(RunConfig(model=model, optim=optim, compute=compute), VOCAB, torch.device(device))
    ids = torch.randint(VOCAB, (batch, SHAPE["block_size"] + 1), device=device)

    def step(rows: int) -> None:
        state.step(1, lambda *_: (ids[:rows, :-1].contiguous(), ids[:rows, 1:].contiguous()))

    step(1)  # optimizer state, and whatever libraries allocate once
    before = _held(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step(batch)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"step_mib": round((peak - before) / 2**20, 1), "process_mib": round(peak / 2**20, 1), "s_per_step": round(seconds, 2)}


def _held(device: str) -> int:
    """Bytes held now."""
    import torch

    if device == "cuda":
        return int(torch.cuda.memory_allocated())
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=["classic", "modern"], default="modern")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--worker", choices=["with", "without"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.arch, args.batch, args.precision, args.device, args.worker == "with")))
        return
    found = {}
    for kind in ("without", "with"):
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", kind]
        found[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    saved = 1 - found["with"]["step_mib"] / found["without"]["step_mib"]
    print(
        json.dumps(
            {
                "benchmark": "checkpoint_memory",
                "arch": args.arch,
                "batch": args.batch,
                "precision": args.precision,
                "device": args.device,
                **found,
                "saved": round(saved, 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
