"""SIGKILL `minigpt tokenize` at random moments and in random system calls, type it again until it ends, and compare every file.

    python tests/benchmarks/kill_preparation.py --kills 300 [--seed 0]

Texts are small, so token files are saved every few kilobytes here and a killed preparation has something to go on from. Right are: after
each kill the token files are not there or whole, and at the end they are, byte for byte, those of a preparation that was left alone,
with nothing beside them. Prints one JSON document; exit code 1 if there are differences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import tiny
from harness.processes import Processes

from minigpt_cli.data import encoding, token_files, verified
from minigpt_cli.data.dataset import RECORD, open_dataset
from minigpt_cli.data.scanned import SCANNED
from minigpt_cli.data.sources import decoding

SOURCES = {
    "a text": ["text.txt"],
    "lines": ["names.txt", "--documents", "lines"],
    "a folder": ["folder", "--train-frac", "0.8", "--test-frac", "0.1"],
    "JSONL": ["rows.jsonl", "--lowercase"],
    "conversations": ["chats.jsonl"],
    "a text of its own for each split": ["text.txt", "--val", "names.txt", "--documents", "lines"],
}
TOKENIZERS = [["--tokenizer", "char"], ["--tokenizer", "byte"], ["--tokenizer", "bpe", "--vocab-size", "300"]]
NOTES = (SCANNED, verified.VERIFIED)  # of the times of files, which differ; what a kill leaves of them goes after a day


def write_texts(folder: Path) -> None:
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghé漢", k=draw.randint(1, 8))) for _ in range(400)]
    (folder / "text.txt").write_text(" ".join(draw.choices(words, k=9000)), encoding="utf-8")
    (folder / "names.txt").write_text("\n".join(draw.choices(words, k=3000)), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": " ".join(draw.choices(words, k=30))}) + "\n" for _ in range(300)))
    (folder / "chats.jsonl").write_text(tiny.chats(1500))
    (folder / "folder").mkdir()
    for i in range(40):
        (folder / "folder" / f"{i}.txt").write_text(" ".join(draw.choices(words, k=200)), encoding="utf-8")


def contents(data: Path) -> dict[str, str]:
    """The hash of every file in and below a folder of token files."""
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and not any(note in path.name for note in NOTES)]
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    token_files._SAVE_EVERY, encoding._TOGETHER, decoding.BLOCK = 4096, 2048, 2048
    found: Counter[str] = Counter()
    findings: list[str] = []
    begin = time.monotonic()
    with tiny.folder() as folder:
        write_texts(folder)
        data = folder / "data"
        processes = Processes({"MINIGPT_DATA_DIR": str(data)})
        draw = random.Random(options.seed)
        while found["kills"] < options.kills:
            what, tokenizer = draw.choice(list(SOURCES)), draw.choice(TOKENIZERS)
            arguments = ["tokenize", *SOURCES[what], *tokenizer, "--json"]
            name = f"{what}, {tokenizer[1]}"
            shutil.rmtree(data, ignore_errors=True)
            alone = processes.start(arguments, cwd=folder, count=True).ended()
            whole = contents(data)
            if alone.code:
                raise SystemExit(f"{name}: {alone.err}")
            for _ in range(4):
                shutil.rmtree(data, ignore_errors=True)
                for _ in range(draw.randint(1, 12)):
                    found["went on from a save"] += any(data.glob(".building-*/progress.json"))
                    if draw.random() < 0.5:
                        ended = processes.start(arguments, cwd=folder, die_at_call=draw.randint(1, alone.calls + 1)).ended()
                    else:
                        process = processes.start(arguments, cwd=folder)
                        process.wait(draw.uniform(0, 1.1 * alone.elapsed_s))
                        ended = process.kill()
                    found["kills"] += ended.code == -9
                    there = [path.parent for path in data.glob(f"[!.]*/{RECORD}")]
                    for path in there:
                        open_dataset(path, verify=True)  # raises where it is not whole
                    if ended.code != -9 or there:
                        break
                ended = processes.start(arguments, cwd=folder).ended()
                found["preparations"] += 1
                if ended.code or contents(data) != whole:
                    findings.append(f"{name}: exit code {ended.code}, {sorted(contents(data))}, alone {sorted(whole)}; {ended.err[-200:]}")
    print(json.dumps({**found, "differences": len(findings), "elapsed_s": round(time.monotonic() - begin, 1), "findings": findings}))
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
