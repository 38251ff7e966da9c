"""How fast minigpt writes, reads a prompt and serves beside llama.cpp, and which share of the memory's bandwidth that is, as JSON.

    python tests/benchmarks/llama_cpp_speed.py --llama-bin ../llama.cpp/build/bin

- The runs have random weights and are trained for one step by the command itself: 6 x 384 with 65 characters, and 12 x 768 with 50,257
  (the shape of GPT-2 small). llama.cpp reads the GGUF files that `runs export` writes.
- One stream samples with temperature 0.9 and top-k 50 (llama.cpp through llama-cpp-python). Decoding alone and reading a prompt have no
  sampling (llama.cpp through its own llama-bench). Streams at once are requests to each server (llama.cpp's own llama-server).
- The bandwidth is that at which the same threads read the memory of the weights and do nothing else. A step reads all weights once; what
  it reads of keys and values is not counted.

Sides take turns, a median of each is printed. llama.cpp's sides that are not installed are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from generation_speed import Side, interleaved

SHAPES = {"6x384": (6, 6, 384, 256, 65), "12x768": (12, 12, 768, 1024, 50_257)}
"""Layers, heads, width, block and vocabulary."""
ENGINES = {"native": "f16", "native-int8": "q8_0"}
"""Our engine, and the format of llama.cpp that it is compared with."""
BITS = {"native": 16, "native-int8": 8}
MINIGPT = [sys.executable, "-m", "minigpt_cli"]


def make_run(shape: str, folder: Path) -> None:
    """A run named like `shape` with random weights, and its GGUF files, below `folder`."""
    layers, heads, width, block, vocabulary = SHAPES[shape]
    letters = [chr(c) for c in range(0x21, 0x20000) if chr(c).isprintable()][:vocabulary]
    (folder / f"{shape}.txt").write_text(
        "".join(letters) + "".join(letters[: 20 * block]) * (1 if vocabulary > 20 * block else 99), "utf-8"
    )
    flags = (
        f"--name {shape} --arch classic --tokenizer char --n-layer {layers} --n-head {heads} --n-embd {width} --block-size {block} "
        "--activation gelu_tanh --bias --tie-weights --init-std 0.08 --batch-size 1 --max-steps 1 --eval-iters 1 --precision fp32 "
        "--compile off --device cpu"
    )
    minigpt(["train", f"{shape}.txt", *flags.split()], folder)
    for dtype in ENGINES.values():
        minigpt(["runs", "export", shape, "--format", "gguf", "--dtype", dtype, "--out", f"gguf-{shape}-{dtype}"], folder)


def minigpt(arguments: list[str], folder: Path) -> None:
    if (done := subprocess.run([*MINIGPT, *arguments], cwd=folder, capture_output=True, text=True)).returncode:
        raise SystemExit(f"minigpt {arguments[0]} failed: {done.stderr}")


def gguf_of(folder: Path, shape: str, dtype: str) -> str:
    return str(next((folder / f"gguf-{shape}-{dtype}").glob("*.gguf")))


def our_decoder(folder: Path, shape: str, engine: str, threads: int) -> tuple[Any, Any]:
    """A decoder of the run, and its tokenizer."""
    from minigpt_cli.generation.decoders.c import NativeDecoder
    from minigpt_cli.generation.open_run import open_model
    from minigpt_cli.runstore.store import RunStore

    opened = open_model(RunStore(folder / "runs").find(shape), engine=engine)
    return NativeDecoder(opened.model, 1, bits=BITS[engine], threads=threads), opened.tokenizer


def our_sides(decoder: Any, tokenizer: Any) -> tuple[Side, Side, Side]:
    """Tokens per second of one stream, of decoding alone and of reading a prompt."""
    from minigpt_cli.generation.engine import Engine, GenerationRequest
    from minigpt_cli.generation.samples import run

    writing = Engine(decoder, tokenizer.token_bytes())

    def write(n: int) -> float:
        began = time.perf_counter()
        steps = sum(1 for _ in run(writing, GenerationRequest([1], max_new_tokens=n, seed=1)))
        return steps / (time.perf_counter() - began)

    def decode(n: int) -> float:
        began = time.perf_counter()
        for i in range(n):
            decoder.step([1 + i % 60], [0], [i])
        return n / (time.perf_counter() - began)

    def read(n: int) -> float:
        began = time.perf_counter()
        decoder.extend(0, [1 + i % 60 for i in range(n)], 0)
        return n / (time.perf_counter() - began)

    return write, decode, read


def llama_writes(path: str, block: int, threads: int) -> Side:
    """Tokens per second of one stream by llama-cpp-python."""
    from llama_cpp import Llama

    model = Llama(path, n_ctx=block, n_threads=threads, n_threads_batch=threads, verbose=False, seed=1)

    def write(n: int) -> float:
        began = time.perf_counter()
        model.reset()
        steps = model.generate([1], temp=0.9, top_k=50, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
        count = sum(1 for _ in zip(range(n), steps, strict=False))
        return count / (time.perf_counter() - began)

    return write


def llama_bench(program: Path, path: str, threads: int, test: str) -> Side:
    """Tokens per second as llama-bench finds them: of decoding (`test` is -n) or of reading a prompt (-p)."""

    def speed(n: int) -> float:
        flags = ["-m", path, "-t", str(threads), "-r", "1", "-o", "json", "-n", "0", "-p", "0", test, str(n)]
        found = subprocess.run([program, *flags], check=True, capture_output=True, text=True)
        return float(json.loads(found.stdout)[0]["avg_ts"])

    return speed


def reading(decoder: Any, threads: int) -> Side:
    """Tokens per second if a token took as long as it takes `threads` to read the weights, each its part of every piece of memory."""
    from minigpt_cli.storage import native_build

    library = native_build.load(Path(__file__).with_name("native") / "read.c")
    if library is None:
        raise SystemExit("the bandwidth cannot be measured without a C compiler")
    library.read_all.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    pieces = decoder.packed.arena.pieces

    def read(number: int, turns: int) -> None:
        for _ in range(turns):
            for address, size in pieces:
                library.read_all(address + number * (size // threads), size // threads)

    def speed(n: int) -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as team:
            list(team.map(read, range(threads), [n] * threads))
        return n * sum(size for _, size in pieces) / (time.perf_counter() - began) / weight_bytes(decoder)

    return speed


def weight_bytes(decoder: Any) -> int:
    return int(decoder.weights.matrix_bytes) * decoder.bits // 32


@contextmanager
def server(command: list[str], port: int, folder: Path) -> Iterator[int]:
    """The port of a server that answers."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                raise SystemExit(f"the server did not answer: {' '.join(command)}")
            yield port
        finally:
            process.terminate()


async def stream(port: int, request: dict[str, Any]) -> None:
    """Read one streamed completion to its end. Nothing is parsed: the client shares the processor with the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    body = json.dumps(request).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read(64)
    if b" 200 " not in answer:
        raise SystemExit(f"the server answered {answer!r}")
    while await reader.read(1 << 20):
        pass
    writer.close()


def served(port: int, streams: int, extra: dict[str, Any]) -> Side:
    """Tokens per second in all of `streams` completions at once, each of a seed of its own."""
    request = {"prompt": "!#$%&'()*+", "temperature": 0.9, "top_k": 50, "stream": True, **extra}

    async def all_of(n: int) -> None:
        await asyncio.gather(*(stream(port, {**request, "max_tokens": n, "seed": seed}) for seed in range(streams)))

    def speed(n: int) -> float:
        began = time.perf_counter()
        asyncio.run(all_of(n))
        return streams * n / (time.perf_counter() - began)

    return speed


def serve(folder: Path, shape: str, options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of each server, which run one after another: an idle one would still hold memory."""
    found: dict[str, list[float]] = {}
    block, port = SHAPES[shape][3], 8191
    threads = ["-t", str(options.threads), "-tb", str(options.threads)]
    plain = {"ignore_eos": True, "samplers": ["top_k", "temperature"], "cache_prompt": False}
    for _ in range(options.rounds):
        for engine, dtype in ENGINES.items():
            ours = [*MINIGPT, "generate", shape, "--serve", "--port", str(port), "--engine", engine]
            sides: dict[str, tuple[list[str], dict[str, Any]]] = {f"minigpt {engine}": (ours, {"model": shape})}
            if options.llama_bin:
                size = ["-np", str(options.streams), "-c", str(block * options.streams), "--port", str(port)]
                theirs = [str(options.llama_bin / "llama-server"), "-m", gguf_of(folder, shape, dtype), *size, *threads, "--no-webui"]
                sides[f"llama.cpp {dtype}"] = (theirs, plain)
            for name, (command, extra) in sides.items():
                with server(command, port, folder) as at:
                    side = served(at, options.streams, extra)
                    found.setdefault(name, []).extend((side(16), side(128))[1:])
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def compare(shape: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every row of one shape."""
    make_run(shape, folder)
    block, threads = SHAPES[shape][3], options.threads
    rows: dict[str, dict[str, Side]] = {"one stream": {}, "decoding alone": {}, "prompt": {}}
    decoders = {}
    for engine, dtype in ENGINES.items():
        name, path = f"minigpt {engine}", gguf_of(folder, shape, dtype)
        decoders[name], tokenizer = our_decoder(folder, shape, engine, threads)
        rows["one stream"][name], rows["decoding alone"][name], rows["prompt"][name] = our_sides(decoders[name], tokenizer)
        rows["decoding alone"][f"reading {name}"] = reading(decoders[name], threads)
        if importlib.util.find_spec("llama_cpp"):
            rows["one stream"][f"llama.cpp {dtype}"] = llama_writes(path, block, threads)
        if options.llama_bin:
            for row, test in (("decoding alone", "-n"), ("prompt", "-p")):
                rows[row][f"llama.cpp {dtype}"] = llama_bench(options.llama_bin / "llama-bench", path, threads, test)
    tokens = {"one stream": 128, "decoding alone": 128, "prompt": min(512, block - 32)}
    found = {row: interleaved(sides, dict.fromkeys(sides, tokens[row]), options.repeats) for row, sides in rows.items()}
    alone = found["decoding alone"]
    if options.streams:
        found[f"{options.streams} streams served"] = serve(folder, shape, options)
    return {
        "tokens_per_s": found,
        "ratios": {row: ratios(speeds) for row, speeds in found.items()},
        "weights_mb": {name: round(weight_bytes(decoder) / 1e6, 1) for name, decoder in decoders.items()},
        "memory_gb_per_s": {name: round(alone[f"reading {name}"] * weight_bytes(decoder) / 1e9, 1) for name, decoder in decoders.items()},
        "share_of_memory": {name: round(alone[name] / alone[f"reading {name}"], 2) for name in decoders},
    }


def ratios(speeds: dict[str, float]) -> dict[str, float]:
    pairs = {f"{engine} to {dtype}": (f"minigpt {engine}", f"llama.cpp {dtype}") for engine, dtype in ENGINES.items()}
    return {name: round(speeds[ours] / speeds[theirs], 2) for name, (ours, theirs) in pairs.items() if theirs in speeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bin", type=lambda s: Path(s).resolve(), help="the folder of llama.cpp's llama-bench and llama-server")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--streams", type=int, default=16, help="requests to the servers at once; 0: no servers")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the servers")
    options = parser.parse_args()
    report: dict[str, Any] = {"threads": options.threads, "load_before": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(MINIGPT_RUNS_DIR=str(folder / "runs"), MINIGPT_DATA_DIR=str(folder / "data"))
        report |= {shape: compare(shape, options, folder) for shape in options.shapes.split(",")}
    report["load_after"] = os.getloadavg()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
