"""The server under load on loopback: 64 streams at once by default, none lost, memory bounded; figures as JSON.

    python tests/benchmarks/serve_load.py --streams 64 --rounds 3

A small model with random weights is served by a process of its own. Every stream's text is compared with what the same
request gives alone. Between the rounds some clients leave in the middle. The largest resident memory of the server is read
from /proc after every round: it must not grow from one round to the next by more than noise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 200
FLAGS = (
    "--name small --n-layer 4 --n-head 4 --n-embd 128 --block-size 64 "
    "--batch-size 4 --max-steps 2 --precision fp32 --compile off --device cpu"
)


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server over one small run, and its address."""
    (folder / "text.txt").write_text(TEXT, "utf-8")
    minigpt, os.environ["MINIGPT_RUNS_DIR"] = [sys.executable, "-m", "minigpt_cli"], str(folder / "runs")
    subprocess.run([*minigpt, "train", "text.txt", *FLAGS.split()], cwd=folder, check=True, capture_output=True)
    process = subprocess.Popen([*minigpt, "generate", "--serve", "--port", "0"], cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    address = re.search(r"http://[\d.:]+", line)
    if address is None:
        raise SystemExit(f"the server did not start: {line}")
    return process, address[0]


def resident_mb(process: subprocess.Popen[str]) -> float | None:
    """Memory of the server now; None where /proc does not say."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return None
    return round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1)


async def one_stream(client: httpx.AsyncClient, seed: int, tokens: int, leave_after: int = 0) -> dict[str, Any]:
    """Read one stream; its text, the seconds to its first text, and how it ended."""
    body = {"model": "small", "prompt": "To be", "max_tokens": tokens, "seed": seed, "temperature": 0.9, "top_k": 50, "stream": True}
    began, text, first, reason, events = time.perf_counter(), "", None, None, 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            return {"status": answer.status_code}
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line[6:])["choices"][0]
            text, reason, events = text + choice["text"], choice["finish_reason"], events + 1
            first = first if first is not None else time.perf_counter() - began
            if leave_after and events >= leave_after:
                return {"status": "left"}
    return {"status": 200, "text": text, "first_s": first, "seconds": time.perf_counter() - began, "reason": reason}


async def measure(address: str, options: argparse.Namespace, memory: Any) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        alone = [(await one_stream(client, seed, options.tokens)) for seed in range(4)]
        rounds = []
        for _ in range(options.rounds):
            began = time.perf_counter()
            streams = await asyncio.gather(*(one_stream(client, seed, options.tokens) for seed in range(options.streams)))
            seconds = time.perf_counter() - began
            whole = [s for s in streams if s.get("reason") == "length"]
            leavers = await asyncio.gather(*(one_stream(client, seed, options.tokens, leave_after=3) for seed in range(options.streams)))
            while (await client.get("/health")).json()["sequences"]:
                await asyncio.sleep(0.02)
            rounds.append({
                "complete": len(whole),
                "lost": len(streams) - len(whole),
                "left_on_purpose": sum(s["status"] == "left" for s in leavers),
                "same_text_as_alone": all(s.get("text") == a["text"] for s, a in zip(streams, alone, strict=False)),
                "tokens_per_s": round(len(whole) * options.tokens / seconds),
                "first_text_s_median": round(statistics.median(s["first_s"] for s in whole), 3),
                "server_mb": memory(),
            })  # fmt: skip
        refused = await asyncio.gather(*(one_stream(client, seed, 4000, leave_after=400) for seed in range(options.streams * 6)))
        statuses: dict[str, int] = {}
        for stream in refused:
            statuses[str(stream["status"])] = statuses.get(str(stream["status"]), 0) + 1
        return {"alone_tokens_per_s": round(options.tokens / alone[1]["seconds"]), "rounds": rounds, f"{len(refused)}_at_once": statuses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        process, address = start(Path(name))
        try:
            before = resident_mb(process)
            found = asyncio.run(measure(address, options, lambda: resident_mb(process)))
        finally:
            process.terminate()
            process.wait(20)
        report = {"streams": options.streams, "tokens_each": options.tokens, "server_mb_at_start": before, **found, "load": os.getloadavg()}
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
