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

MODEL, CONFIGURATION = (block + "\n" for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL))
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
OWN = CONFIGURATION.partition("class MineConfig(_Architecture):\n")[2].replace('"mine"', '"{0}"')
MODERN = """
    arch: Literal["{0}"] = "{0}"
    n_colours: int = 8
    n_layer: int = Field(1, ge=1)
    n_head: int = Field(2, ge=1)
    n_embd: int = Field(16, ge=1)
"""
LIKE_MODERN = "from minigpt_cli.models.modern import Modern\n\n\nclass Mine(Modern):\n    pass\n"
UNFINISHED = "from torch import nn\n\n\nclass Mine(nn.Module):\n    def forward(self, ids): ...\n"
FAMILY, DECODED = '\n    hugging_face = "llama"\n', '\n    decodes_as = "modern"\n'
OTHERS = {  # architectures beside `mine`: the base of the configuration, its body, the model
    "variant": ("ModernConfig", FAMILY + DECODED + MODERN, LIKE_MODERN),
    "misfit": ("ModernConfig", FAMILY + DECODED + MODERN, MODEL),
    "claims": ("_Architecture", FAMILY + DECODED + OWN, MODEL),
    "nonesuch": ("_Architecture", FAMILY.replace("llama", "lama") + DECODED.replace("modern", "mordern") + OWN, MODEL),
    "unregistered": ("_Architecture", OWN, MODEL),
    "unfinished": ("_Architecture", OWN, UNFINISHED),
}
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
    "train --help-all",
    "train --arch mine --n-experts 4",
    "runs export a --out exported",
    "runs export a --format gguf --out exported",
    *(f"train text.txt --arch {other} --name {other} {SMALL}" for other in OTHERS),
    *(
        f"{command} {other}"
        for other in list(OTHERS)[:4]
        for command in ("generate --prompt abc --max-new-tokens 5", "runs export --out exported")
    ),
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
    classes = {"mine": CONFIGURATION}
    (copy / "models/mine.py").write_text(MODEL, encoding="utf-8")
    for other, (base, body, model) in OTHERS.items():
        (copy / f"models/{other}.py").write_text(model, encoding="utf-8")
        classes[other] = f"class {other.title()}Config({base}):\n{body.format(other)}"
    config = (copy / "config.py").read_text(encoding="utf-8")
    config = config.replace("ModelConfig = Annotated[", "\n\n".join([*classes.values(), "ModelConfig = Annotated["]), 1)
    added = "".join(f" | {name.title()}Config" for name in classes)
    config = re.sub(r"(ModelConfig = Annotated\[[\w |]+)", rf"\1{added}", config, count=1)
    (copy / "config.py").write_text(config, encoding="utf-8")
    (copy / "training/signs.py").write_text(OPTIMIZER, encoding="utf-8")
    registry = (copy / "registry.py").read_text(encoding="utf-8")
    lines = "".join(f'    "{other}": "minigpt_cli.models.{other}:Mine",\n' for other in OTHERS if other != "unregistered")
    registry = registry.replace("ARCHITECTURES = {\n", "ARCHITECTURES = {\n" + lines, 1)
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


@pytest.mark.parametrize("command", [c for c in COMMANDS if not any(w in c for w in ("export", "--n-experts", *OTHERS))])
def test_every_command_knows_it(command: str, done: dict[str, tuple[int, str, str]]) -> None:
    code, _, err = done[command]
    assert code == 0, err


def test_it_is_trained_scored_and_listed_with_its_own_settings(done: dict[str, tuple[int, str, str]]) -> None:
    assert {run["arch"] for run in json.loads(done["runs list --json"][1])} == {"mine"}
    assert re.search(r"optimizer\s+signs", done["runs show signed"][1])
    assert "signs|" in done["train --help-all"][1]
    assert json.loads(done["eval a --json"][1])["nats_per_char"] < 3
    assert "n_colours" in done["runs show a"][1]
    assert "--n-colours" in done["train --help-all"][1]
    written = json.loads(done[GENERATE][1])
    assert [len(sample["text"]) for sample in written["samples"]] == [20, 20]


def test_a_setting_of_another_architecture_names_both(done: dict[str, tuple[int, str, str]]) -> None:
    code, _, err = done["train --arch mine --n-experts 4"]
    assert code == 2
    assert "--n-experts belongs to --arch moe, and this run is --arch mine" in " ".join(err.split())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("runs export a ")])
def test_its_export_is_refused_by_name_in_one_line(command: str, done: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = done[command]
    assert (code, out) == (2, "")
    declare = ", ".join(["classic", "modern", "moe", *(other for other, (_, body, _) in OTHERS.items() if FAMILY[:16] in body)])
    assert err == f"Error: Hugging Face has no architecture like --arch mine: only runs of {declare} can be written in its format\n"


def test_a_variant_of_modern_is_decoded_and_exported_as_it_declares(done: dict[str, tuple[int, str, str]]) -> None:
    for command in [c for c in COMMANDS if c.endswith("variant")]:
        assert done[command][0] == 0, done[command][2]


LACKS = "lacks the settings of ModernConfig: derive ClaimsConfig from ModernConfig, or remove"
REFUSED = {  # command: the end of its one line
    "generate misfit": "decodes_as = 'modern' in config.py but its tensors are not those of modern: see blocks.0.attention.k_norm.weight"
    ", or remove decodes_as",
    "export misfit": "hugging_face = 'llama' in config.py but its tensors are not those of a qwen3: see token_embedding.weight, "
    "or remove hugging_face",
    "generate claims": f"decodes_as = 'modern' in config.py but {LACKS} decodes_as",
    "export claims": f"hugging_face = 'llama' in config.py but {LACKS} hugging_face",
    "generate nonesuch": "decodes_as = 'mordern' in config.py: the known values are bigram, classic, modern, moe",
    "export nonesuch": "hugging_face = 'lama' in config.py: the known values are gpt2, llama",
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_declaration_that_does_not_fit_is_refused_with_architecture_and_field(what: str, done: dict[str, tuple[int, str, str]]) -> None:
    verb, arch = what.split()
    (found,) = [done[c] for c in COMMANDS if verb in c and c.endswith(f" {arch}")]
    assert found == (2, "", f"Error: --arch {arch} declares {REFUSED[what]}\n")


def test_a_step_of_the_recipe_left_out_is_named(done: dict[str, tuple[int, str, str]]) -> None:
    code, _, err = done[f"train text.txt --arch unregistered --name unregistered {SMALL}"]
    line = '"unregistered": "minigpt_cli.models.unregistered:Class"'
    missing = f"Error: --arch unregistered is in config.py but not in registry.py: add the line {line} to ARCHITECTURES there"
    assert (code, err.splitlines()[-1]) == (2, missing)
    code, _, err = done[f"train text.txt --arch unfinished --name unfinished {SMALL}"]
    lacks = "minigpt_cli.models.unfinished:Mine lacks __init__, init_weights, new_cache, matrices, n_active_params"
    assert (code, err.splitlines()[-1]) == (2, f"Error: {lacks}: add what Model in minigpt_cli/models/contract.py promises")
