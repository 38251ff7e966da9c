"""The folder, the text of 2,000 characters, the conversations, the sizes and the runs on which a command takes a fraction of a second."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt_cli.config import RunConfig
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import RunRecord, now
from minigpt_cli.runstore.store import RunStore

DETERMINED = ["--device", "cpu", "--precision", "fp32", "--attention", "plain", "--compile", "off", "--threads", "1"]
"""Nothing is measured or chosen."""


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for the length of a `with`, in memory where there is one: a killed process loses nothing that it wrote, so the disk need
    not be waited for."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def text(n_chars: int = 2000) -> str:
    """Eleven letters in an order that a model can partly learn."""
    return "".join("abcdefghijk"[(i * i + i // 7) % 11] for i in range(n_chars))


def chats(n: int = 60) -> str:
    """Conversations as the lines of a .jsonl file."""
    draw = random.Random(3)
    rows = []
    for _ in range(n):
        a, b = draw.randrange(9), draw.randrange(9)
        rows.append({"messages": [{"role": "user", "content": f"{a}+{b}"}, {"role": "assistant", "content": str(a + b)}]})
    return "".join(json.dumps(row) + "\n" for row in rows)


def sizes(n_embd: int = 16) -> list[str]:
    """The flags of a transformer of one layer."""
    return ["--n-layer", "1", "--n-head", "2", "--n-embd", str(n_embd), "--block-size", "8"]


def training(max_steps: int, eval_every: int, n_embd: int = 8) -> list[str]:
    """The flags of a short training in which nothing is measured or chosen."""
    steps = ["--batch-size", "4", "--max-steps", str(max_steps), "--eval-every", str(eval_every)]
    return ["--arch", "modern", *sizes(n_embd), *steps, *DETERMINED]


def begun(store: RunStore, name: str, config: RunConfig, tokenizer_json: str, **record: Any) -> Run:
    """A run as the train command leaves it before step 0."""
    run = store.create(name)
    run.write_config(config)
    run.write_tokenizer(tokenizer_json)
    run.write_record(RunRecord(name=name, created_at=now(), **record))
    return run
