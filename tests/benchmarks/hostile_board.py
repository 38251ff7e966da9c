"""Two thousand runs of which two hundred are hostile: what the commands over all runs say, and how long they take.

    python tests/benchmarks/hostile_board.py [RUNS]

Every tenth run is a pipe, a link, a giant, a bomb of nested lists, or a record with numbers and words that no run can have.
A line for each command: seconds, exit code, lines; exit code 1 if one failed, left a traceback, or wrote a terminal's commands.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import tiny
from harness.processes import Processes
from harness.results import complaint

from minigpt_cli.config import RunConfig
from minigpt_cli.runstore.records import Best, Corpus, RunRecord, SplitRecord, _checksum, now

COMMANDS = [
    "runs leaderboard", "runs leaderboard --md", "runs leaderboard --fold-seeds", "runs leaderboard --budget tokens",
    "runs list", "runs list --json",
    "runs list --where 'arch=modern and n_params<1e9'", "runs show latest", "runs show top", "runs diff r0000 r0001",
]  # fmt: skip
WORDS = "\x1b]0;x\x07\u202e<script>|=1+1" * 50


def content(number: int) -> dict[str, Any]:
    """The content of a plausible run.json."""
    nats = 2.5 + random.Random(number).random() + (number % 10 == 9)  # `top` is one that can be shown
    split = SplitRecord(sha256="a" * 64, n_tokens=10, n_chars=10, n_bytes=10)
    record = RunRecord(
        name=f"r{number:04d}", status="finished", stop_reason="max_steps", created_at=now(), updated_at=now(),
        arch="modern", tokenizer="char",
        corpus=Corpus(label="text.txt", sha256="a" * 64, splits={"train": split, "val": split}), n_params=1000, tokens_seen=number,
        best=Best(step=1, nats_per_token=nats, nats_per_char=nats, ci95=(nats - 0.1, nats + 0.1)),
    )  # fmt: skip
    return record.model_dump(mode="json")


def sign(folder: Path, record: dict[str, Any]) -> None:
    """Write a record with the checksum of what it holds."""
    (folder / "run.json").write_text(json.dumps({**record, "checksum": _checksum(record)}))


def changed(**values: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda folder, record: sign(folder, record | values)


def giant(folder: Path, record: dict[str, Any]) -> None:
    with (folder / "annotations.json").open("wb") as file:
        file.truncate(1 << 40)
    sign(folder, record)


def pipes(folder: Path, record: dict[str, Any]) -> None:
    sign(folder, record)
    for name in ("config.json", "metrics.jsonl", "annotations.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)


def link(folder: Path, record: dict[str, Any]) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("/")


def writing(data: bytes) -> Callable[[Path, dict[str, Any]], None]:
    def write(folder: Path, record: dict[str, Any]) -> None:
        (folder / "run.json").write_bytes(data)

    return write


HOSTILE: list[Callable[[Path, dict[str, Any]], None]] = [
    writing(os.urandom(5000)), writing(b'{"a":' * 100_000), lambda folder, record: (folder / "run.json").symlink_to("/dev/zero"),
    giant, pipes, link, changed(n_params=10**400), changed(created_at="yesterday"), changed(stop_reason=WORDS),
    changed(arch=WORDS, group=WORDS),
]  # fmt: skip


def make(runs_dir: Path, runs: int) -> None:
    """Fill `runs_dir`."""
    settings = RunConfig().model_dump_json()
    for number in range(runs):
        folder = runs_dir / f"r{number:04d}"
        folder.mkdir()
        (folder / "config.json").write_text(settings.replace("1337", str(number)))
        (HOSTILE[number // 10 % len(HOSTILE)] if number % 10 == 9 else sign)(folder, content(number))


def main() -> int:
    runs, failed = int(sys.argv[1]) if len(sys.argv) > 1 else 2000, 0
    with tiny.folder() as folder:
        make(folder, runs)
        processes = Processes({"MINIGPT_RUNS_DIR": str(folder)})
        for command in COMMANDS:
            done = processes.run(shlex.split(command))
            wrong = done.code or complaint(done.code, done.err) or re.search("\x1b\\]|\x07|\u202e", done.out + done.err)
            failed += bool(wrong)
            print(f"{done.elapsed_s:6.2f} s  rc {done.code}  {len(done.out.splitlines()):5} lines  {command}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
