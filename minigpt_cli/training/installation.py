"""This machine and this installation, for `minigpt --version -v`: what somebody who helps would ask."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from minigpt_cli.accel import install
from minigpt_cli.data.sources.open_source import data_folder
from minigpt_cli.generation.decoders import c
from minigpt_cli.runstore.store import resolve_runs_dir
from minigpt_cli.storage import native_build
from minigpt_cli.training import precision
from minigpt_cli.training.planner import choose_device
from minigpt_cli.training.self_test import self_test


def describe() -> dict[str, str]:
    """What a person would ask about this machine and installation; builds the C code, and computes a step with it."""
    place, _ = choose_device("auto")
    device = {"cuda": lambda: f"cuda, {torch.cuda.get_device_name()}", "cpu": lambda: f"cpu, {torch.get_num_threads()} threads"}
    number_format, why = precision.choose("auto", place)
    training = {
        "tiles": "C, attention on the processor's matrix tiles",
        "c": "C",
        "torch": f"torch, slower: {install.why_not()}",
    }[install.in_use()]
    reason, cache = c.why_not(), native_build.cache_folder()
    installed, missing = _extras()
    return {
        "torch": torch.__version__,
        "system": f"{platform.platform()}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "device": device.get(place, lambda: place)(),
        "numbers": f"{number_format}: {why}",
        "kernels": training,
        "decoder": f"torch, slower: {reason}" if reason else "C",
        "compiler": native_build.compiler(),
        "cache": str(cache or "none: compiled code is built anew each time"),
        "data": str(data_folder().absolute()),
        "runs": str(resolve_runs_dir().absolute()),
        "packages": ", ".join(f"{name} {version(name)}" for name in ("numpy", "tokenizers", "safetensors", "pydantic", "typer", "rich")),
        "extras": (", ".join(installed) or "none") + (f"; not installed: {', '.join(missing)}" if missing else ""),
        "test": self_test(place),
    }


def _extras() -> tuple[list[str], list[str]]:
    """The optional parts of minigpt that are installed, and those that are not."""
    needs: dict[str, list[str]] = {}
    for requirement in requires("minigpt-cli") or []:
        if match := re.fullmatch(r"([\w.-]+)(?:\[.*\])?[^;]*;.*extra == ['\"](\w+)['\"].*", requirement):
            needs.setdefault(match[2], []).append(match[1])
    needs.pop("test", None)
    installed = [extra for extra, packages in needs.items() if all(map(_is_installed, packages))]
    return installed, [extra for extra in needs if extra not in installed]


def _is_installed(package: str) -> bool:
    if package.startswith("backports."):  # part of later Pythons
        return True
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
