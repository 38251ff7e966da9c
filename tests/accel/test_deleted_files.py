"""Files of accel/ deleted from a copy of the package: minigpt still works, and computes the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import minigpt_cli

PACKAGE = Path(minigpt_cli.__file__).parent
KEPT = ("__init__.py", "install.py")
SMALL = "--max-steps 4 --eval-every 2 --block-size 8 --batch-size 2 --n-layer 1 --n-head 2 --n-embd 16 --precision fp32 --device cpu"

COMMANDS = f"""
from minigpt_cli.cli import run
for command in (
    "train text.txt --arch moe --name a {SMALL}",
    "train --resume a --max-steps 6",
    "eval a --json",
    "generate a --prompt abc --max-new-tokens 5",
):
    assert run(command.split()) == 0, command
"""
ONE_BY_ONE = f"""
import importlib, sys
from pathlib import Path
import torch
import minigpt_cli.accel
from minigpt_cli.config import ClassicConfig, ModernConfig, MoEConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.storage import native_build

sizes = dict(block_size=8, n_layer=1, n_head=2, n_embd=32)
models = [build_model(config(**sizes), 11, seed=0) for config in (ClassicConfig, ModernConfig, MoEConfig)]
ids = torch.arange(8)[None]
plain = [model(ids).logits for model in models]
folder = Path(minigpt_cli.accel.__file__).parent
files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in {KEPT!r})
for path in files:
    text = path.read_bytes()
    path.unlink()
    for name in [name for name in sys.modules if name.startswith("minigpt_cli.accel")]:
        del sys.modules[name]
    native_build.forget()
    importlib.invalidate_caches()
    install = importlib.import_module("minigpt_cli.accel.install")
    install.keep_freed_memory()
    assert not (path.stem == "kernels" and install.libraries()), path
    for i, config in enumerate((ClassicConfig, ModernConfig, MoEConfig)):
        fast = install.install(build_model(config(**sizes), 11, seed=0))(ids).logits
        torch.testing.assert_close(fast, plain[i], atol=1e-5, rtol=1e-5)
    path.write_bytes(text)
print(*(path.name for path in files))
"""


def in_copy(folder: Path, code: str, *, without: bool) -> str:
    """What `code` prints with a copy of the package, whose accel/ has only what must be kept."""
    shutil.copytree(PACKAGE, folder / "minigpt_cli", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "minigpt_cli/accel").iterdir():
        if without and path.name not in KEPT:
            path.unlink()
    (folder / "text.txt").write_text("abcdefgh" * 300, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MINIGPT_")}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_without_any_fast_form_it_trains_resumes_scores_and_generates(tmp_path: Path) -> None:
    assert "accel/kernels.py is missing" in in_copy(tmp_path, COMMANDS, without=True)


def test_without_any_one_file_every_architecture_computes_the_same(tmp_path: Path) -> None:
    tried = in_copy(tmp_path, ONE_BY_ONE, without=False).split()
    assert {"attention.py", "experts.py", "kernels.c", "kernels.py", "layers.py", "simd.h"} <= set(tried)
