"""CONTRIBUTING.md's instructions, followed to the letter in a copy of the package.

A new architecture is one file, one configuration, one line; a new optimizer one file and one line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import minigpt_cli

PACKAGE = Path(minigpt_cli.__file__).parent
GUIDE = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Adding an architecture")[2].partition("\n| what")[0]

MODEL = '''
"""The mean of all embeddings so far. B batch, T tokens, C channels, V vocabulary."""

import torch
from torch import nn

from minigpt_cli.models.contract import Output


class Mine(nn.Module):
    def __init__(self, config, vocab_size):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = nn.Embedding(vocab_size, config.n_colours)
        self.head = nn.Linear(config.n_colours, vocab_size)

    def forward(self, ids, cache=None):
        seen = torch.arange(1, ids.size(1) + 1, device=ids.device)[:, None]  # (T, 1)
        logits = self.head(self.embedding(ids).cumsum(1) / seen)  # (B, T, V)
        return Output(logits, logits.new_zeros(()))

    @torch.no_grad()
    def init_weights(self, generator):
        for p in self.parameters():
            p.normal_(0.0, 0.02, generator=generator)

    def new_cache(self, batch_size, max_tokens):
        return None

    def matrices(self):
        yield from ()

    def n_active_params(self):
        return sum(p.numel() for p in self.parameters())
'''
OPTIMIZER = '''
"""signSGD with momentum (Bernstein et al. 2018)."""

from typing import ClassVar

import torch


class Signs:
    shards: ClassVar = False

    @classmethod
    def of(cls, model, config, *, fast_bf16):
        return cls([p for p in model.parameters() if p.requires_grad], config)

    def __init__(self, parameters, config):
        self.parameters, self.config = parameters, config
        self.momenta = [torch.zeros_like(p) for p in parameters]

    @property
    def state_bytes(self):
        return sum(m.nbytes for m in self.momenta)

    @torch.no_grad()
    def step(self, factor, found_inf=None):
        for p, m in zip(self.parameters, self.momenta, strict=True):
            m.lerp_(p.grad, 1 - self.config.beta1)
            p.sub_(self.config.lr * factor * m.sign())

    def state_tensors(self):
        return {f"signs.{i}": m for i, m in enumerate(self.momenta)}

    def load_state_tensors(self, tensors):
        for i, m in enumerate(self.momenta):
            m.copy_(tensors[f"signs.{i}"])
'''
CONFIGURATION = '''
class MineConfig(_Architecture):
    """The mean of what was seen."""

    arch: Literal["mine"] = "mine"
    block_size: int = Field(64, ge=1, le=1 << 20)
    """Tokens in one training window (the context that a model sees)."""
    n_colours: int = Field(8, ge=1)
    """Width of the mean."""


ModelConfig = Annotated['''
GENERATE = "generate a --prompt abc --max-new-tokens 20 --num-samples 2 --json"
SMALL = "--max-steps 4 --eval-every 2 --block-size 8 --batch-size 2 --device cpu"
COMMANDS = [
    f"train text.txt --arch mine --n-colours 5 --name a {SMALL}",
    f"train text.txt --arch mine --name b {SMALL} --optimizer adamw --seed 2",
    "train --resume a --max-steps 6",
    f"train text.txt --arch mine --optimizer signs --name signed {SMALL}",
    "train --resume signed --max-steps 6",
    "train --arch mine --dry-run text.txt --max-steps 2 --block-size 8",
    "eval a --json",
    GENERATE,
    "compare a b --json",
    "runs list --json",
    "runs show a",
    "runs show signed",
    "runs verify a",
    "runs leaderboard",
    "train --help",
    "train --arch mine --n-experts 4",
    "runs export a --out exported",
    "runs export a --format gguf --out exported",
]
DRIVER = """
import contextlib, io, json, sys
from minigpt_cli.cli import run
found = {}
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(command.split())
    found[command] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command, in the copy."""
    folder = tmp_path_factory.mktemp("recipe")
    copy = folder / "minigpt_cli"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "models/mine.py").write_text(MODEL, encoding="utf-8")
    config = (copy / "config.py").read_text(encoding="utf-8")
    config = config.replace("ModelConfig = Annotated[", CONFIGURATION, 1).replace("| MoEConfig,", "| MoEConfig | MineConfig,", 1)
    (copy / "config.py").write_text(config, encoding="utf-8")
    (copy / "training/signs.py").write_text(OPTIMIZER, encoding="utf-8")
    registry = (copy / "registry.py").read_text(encoding="utf-8")
    for table, name in (("ARCHITECTURES", "mine"), ("OPTIMIZERS", "signs")):
        (line,) = re.findall(rf'`("{name}": "[^`]*")`', GUIDE)
        registry = registry.replace(f"{table} = {{\n", f"{table} = {{\n    {line},\n", 1)
    (copy / "registry.py").write_text(registry, encoding="utf-8")
    (folder / "text.txt").write_text("abcdefgh" * 300, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MINIGPT_")} | {"PYTHONPATH": str(folder), "NO_COLOR": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(COMMANDS), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout)
    return {command: (code, out, err) for command, (code, out, err) in found.items()}


def test_the_guide_names_the_three_places() -> None:
    for place in (
        "minigpt_cli/models/mine.py",
        'arch: Literal["mine"]',
        "`config.py`, added to the union",
        "`ARCHITECTURES` of `registry.py`",
    ):
        assert place in GUIDE


@pytest.mark.parametrize("command", [c for c in COMMANDS if "export" not in c and "--n-experts" not in c])
def test_every_command_knows_it(command: str, done: dict[str, tuple[int, str, str]]) -> None:
    code, _, err = done[command]
    assert code == 0, err


def test_it_is_trained_scored_and_listed_with_its_own_settings(done: dict[str, tuple[int, str, str]]) -> None:
    assert {run["arch"] for run in json.loads(done["runs list --json"][1])} == {"mine"}
    assert re.search(r"optimizer\s+signs", done["runs show signed"][1])
    assert "signs|" in done["train --help"][1]
    assert json.loads(done["eval a --json"][1])["nats_per_char"] < 3
    assert "n_colours" in done["runs show a"][1]
    assert "--n-colours" in done["train --help"][1]
    written = json.loads(done[GENERATE][1])
    assert [len(sample["text"]) for sample in written["samples"]] == [20, 20]


def test_a_setting_of_another_architecture_names_both(done: dict[str, tuple[int, str, str]]) -> None:
    code, _, err = done["train --arch mine --n-experts 4"]
    assert code == 2
    assert "--n-experts belongs to --arch moe, and this run is --arch mine" in " ".join(err.split())


@pytest.mark.parametrize("command", [c for c in COMMANDS if "export" in c])
def test_its_export_is_refused_by_name_in_one_line(command: str, done: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = done[command]
    assert (code, out) == (2, "")
    assert (
        err == "Error: Hugging Face has no architecture like --arch mine: only runs of classic, modern, moe can be written in its format\n"
    )
