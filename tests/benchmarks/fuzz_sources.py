"""Change files of every kind at random and read them as sources.

    python tests/benchmarks/fuzz_sources.py --minutes 10 [--seed 0] [--keep FOLDER]

A sample of every kind is cut, overwritten, doubled, spliced with another, or given another's name, and read alone and in a
folder. Right are documents of proper text, or a MiniGPTError of one line, in ten seconds, within a gigabyte of memory and
without a word on stderr. Prints one JSON document; exit code 1 if there are findings. --keep keeps the files that made them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.samples import SAMPLES

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.open_source import open_source
from minigpt_cli.errors import MiniGPTError

SLOW_S = 10.0
MEMORY = 1 << 30  # bytes above what is used at the start
HOW = ("auto", "auto", "auto", "file", "lines", "---")
OPTIONS: tuple[dict[str, Any], ...] = ({}, {}, {}, {"text_field": "title"}, {"encoding": "cp1252"}, {"encoding": "utf-16"})


def changed(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """The data with one to four random changes."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(out) + 1), chance.choice([1, 2, 4, 16, 200])
        other = chance.choice(others)
        start = chance.randrange(len(other))
        match chance.randrange(7):
            case 0:
                del out[at:]
            case 1:
                del out[at : at + length]
            case 2:
                out[at : at + length] = chance.randbytes(length)
            case 3:
                out[at:at] = chance.choice([b"\0", b"\xff", b"\n", b'"', b"<", b"\\ud800", b"[" * 2000, b"<b>" * 3000, b"9" * 5000])
            case 4:
                out[at:at] = other[start : start + length]
            case 5:
                out[at:at] = out[at : at + length] * chance.choice([1, 2, 50])
            case 6 if out:
                out[min(at, len(out) - 1)] ^= 1 << chance.randrange(8)
    return bytes(out)


def read(name: str, options: DataConfig) -> str:
    """What came of reading a source: "documents", "nothing", an error's type, or a finding that begins with "!"."""
    said = io.StringIO()
    start = time.monotonic()
    count = 0
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("error")
            source = open_source(name, options=options)
            for document in source.documents():
                count += 1
                for piece in document.pieces:
                    piece.text.encode("utf-8")
        outcome = "documents" if count else "nothing"
    except MiniGPTError as error:
        outcome = f"!not one line: {error!r}" if "\n" in str(error) or not str(error) else type(error).__name__
    except Exception as error:
        outcome = f"!{type(error).__name__}: {error}"
    if time.monotonic() - start > SLOW_S:
        return f"!slow: {time.monotonic() - start:.0f} s"
    return f"!said {said.getvalue()[:200]!r}" if said.getvalue() else outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    samples = {name: make() for name, make in SAMPLES.items()}
    chance = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    keep = arguments.keep and arguments.keep.resolve()
    end = time.monotonic() + arguments.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        first_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Path("folder").mkdir()
        number = 0
        while time.monotonic() < end:
            number += 1
            kind = chance.choice(list(samples))
            name = kind if chance.random() < 0.8 else chance.choice([*samples, "x", "x.dat"])
            data = changed(samples[kind], chance, list(samples.values()))
            options = DataConfig(documents=chance.choice(HOW), **chance.choice(OPTIONS))
            place = Path("folder", name) if chance.random() < 0.3 else Path(name)
            place.write_bytes(data)
            outcome = read("folder" if place.parent.name else name, options)
            place.unlink()
            outcomes[outcome.partition(":")[0]] += 1
            if outcome.startswith("!"):
                findings.append({"number": number, "kind": kind, "name": str(place), "options": options.model_dump(), "outcome": outcome})
                if keep:
                    (keep / f"{number}").mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}" / name).write_bytes(data)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first_peak) * 1024
        os.chdir("/")
    if grown > MEMORY:
        findings.append({"outcome": f"memory grew by {grown >> 20} MiB"})
    report = {"files": number, "seed": arguments.seed, "outcomes": dict(outcomes), "grown_mib": grown >> 20, "findings": findings}
    json.dump(report, sys.stdout, indent=1)
    print()
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
