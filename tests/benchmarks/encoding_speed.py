"""How fast text becomes tokens, on one core, and in how much memory. Prints one JSON document.

    python tests/benchmarks/encoding_speed.py [FILE] [--repeats 7] [--documents 100000] [--large 1000]

Each tokenizer of minigpt encodes FILE (default: the embedded python-docs, repeated to 8 MB) beside the `tokenizers` library
with the very JSON that minigpt stores: medians of interleaved repeats, megabytes of UTF-8 a second, CPU time of the process
so that neighbours count less. `must_reach` is the promise of the char and byte tables. Then batches: milliseconds for one
of 32 x 128. With --documents, so many documents of 200 characters are prepared (lines, JSONL, CSV, parquet, conversations, and
a fifth as many files of five) beside one file of the same characters: the smallest CPU time of three, in turns. With --large,
`minigpt tokenize` cuts a file of that many megabytes in a process of its own, and its peak memory is printed; words in that
file are changed now and then, so that new ones keep appearing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core on both sides

import numpy as np
import pyarrow
import pyarrow.parquet
import tokenizers

from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.data.batches import Batches
from minigpt_cli.data.encoding import prepared
from minigpt_cli.data.sources.corpora import named_corpus
from minigpt_cli.registry import load
from minigpt_cli.tokenization.contract import Tokenizer, TrainingText

MUST_REACH = {"char": 50.0, "byte": 50.0}  # MB/s
LIBRARY_SHARE = 16  # the library is given one part in so many: it is slow


def corpus_of(text: str) -> TrainingText:
    """The text to learn from."""
    return TrainingText(TrainingText.of(text).alphabet, len(text.encode()), lambda: iter([text]))


def speed(work: Callable[[], Any], n_bytes: int) -> float:
    """Megabytes a second of CPU time."""
    started = time.process_time()
    work()
    return n_bytes / 1e6 / max(time.process_time() - started, 1e-9)


def compare(name: str, text: str, repeats: int) -> dict[str, Any]:
    """minigpt's speed and the library's with the same JSON."""
    tokenizer: Tokenizer = load("tokenizer", name).build(DataConfig(vocab_size=1024), corpus_of(text))
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    part = text[: len(text) // LIBRARY_SHARE]
    if tokenizer.encode(part).tolist() != library.encode(part, add_special_tokens=False).ids:
        raise SystemExit(f"{name}: the library gives other ids")
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(speed(lambda: tokenizer.encode(text), len(text.encode())))
        theirs.append(speed(lambda: library.encode(part, add_special_tokens=False), len(part.encode())))
    found = {"minigpt_mb_per_s": statistics.median(ours), "library_mb_per_s": statistics.median(theirs)}
    found["ratio"] = found["minigpt_mb_per_s"] / found["library_mb_per_s"]
    return found | ({"must_reach_mb_per_s": MUST_REACH[name]} if name in MUST_REACH else {})


def batch_ms(repeats: int) -> float:
    """Median milliseconds to assemble a batch of 32 x 128 from a million tokens."""
    config = RunConfig().changed(model={"block_size": 128}, optim={"batch_size": 32})
    batches = Batches(np.random.default_rng(0).integers(0, 65, 1_000_000).astype(np.uint16), config)
    took = []
    for step in range(100 * repeats):
        started = time.perf_counter()
        batches(step)
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1e3


def write_documents(folder: Path, text: str, count: int) -> dict[str, DataConfig]:
    """The same `count` documents as files of each kind, and how each is read."""
    words = " ".join(text.split())
    words *= 1 + 200 * count // len(words)
    documents = [words[i * 200 : (i + 1) * 200].strip() or "." for i in range(count)]
    lines = "\n".join(documents) + "\n"
    (folder / "one.txt").write_text(lines, encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    chats = ({"prompt": text[:100], "completion": text[100:] or "."} for text in documents)
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in documents)])
    pyarrow.parquet.write_table(pyarrow.table({"text": documents}), folder / "rows.parquet")
    for i in range(0, count, 5):
        path = folder / "files" / f"{i % 500:03d}" / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(documents[i : i + 5]), encoding="utf-8")
    names = {"one file": "one.txt", "lines": "one.txt", "jsonl": "rows.jsonl", "csv": "table.csv", "parquet": "rows.parquet"}
    sources = {what: str(folder / name) for what, name in (names | {"conversations": "chats.jsonl", "files": "files"}).items()}
    return {what: DataConfig(source=source, documents="lines" if what == "lines" else "auto") for what, source in sources.items()}


def documents(text: str, count: int) -> dict[str, dict[str, float]]:
    """CPU seconds of a preparation of each kind of file, and how many times those of one file."""
    with tempfile.TemporaryDirectory() as name:
        kinds = write_documents(Path(name), text, count)
        took: dict[str, list[float]] = {what: [] for what in kinds}
        for number in range(3):
            for what, config in kinds.items():
                started = time.process_time()
                prepared(config, Path(name, f"data-{number}-{what}"))
                took[what].append(time.process_time() - started)
    return {what: {"cpu_s": min(times), "times_one_file": min(times) / min(took["one file"])} for what, times in took.items()}


def write_large(path: Path, text: str, n_bytes: int) -> None:
    """`text` over and over, one word in fifty changed."""
    draw = random.Random(0)
    words = text.split(" ")
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < n_bytes:
            file.write(" ".join(w + str(draw.randrange(1000)) if draw.random() < 0.02 else w for w in words))


def large(name: str, path: Path) -> dict[str, float]:
    """Seconds and peak megabytes of `minigpt tokenize` on a large file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        command = [sys.executable, "-m", "minigpt_cli", "tokenize", str(path), "--tokenizer", name, "--out", out, "--json"]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"minigpt tokenize failed on {path}")
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes there, kilobytes here
    return {"seconds": time.monotonic() - started, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss * scale / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--documents", type=int, default=0, metavar="N")
    parser.add_argument("--large", type=int, default=0, metavar="MB")
    parser.add_argument("--tokenizers", nargs="+", default=["char", "byte", "bpe"])
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8") if options.file else "".join(named_corpus("python-docs").chunks())
    text *= max(1, 8_000_000 // len(text))
    found: dict[str, Any] = {"python": platform.python_version(), "numpy": np.__version__, "tokenizers": tokenizers.__version__}
    found |= {"machine": platform.processor() or platform.machine(), "load": os.getloadavg()[0], "text_bytes": len(text.encode())}
    found["encoding"] = {name: compare(name, text, options.repeats) for name in options.tokenizers}
    found["batch_32x128_ms"] = batch_ms(options.repeats)
    if options.documents:
        found["documents"] = {"count": options.documents, "must_stay_below_times": 2} | documents(text, options.documents)
    if options.large:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "large.txt")
            write_large(path, text, options.large * 1_000_000)
            found["large"] = {"megabytes": options.large, "must_stay_below_mb": 500}
            found["large"] |= {name: large(name, path) for name in options.tokenizers}
    found["own_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
