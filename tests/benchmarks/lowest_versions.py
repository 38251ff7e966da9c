"""The tests with the oldest versions that pyproject.toml admits, in an environment of their own; figures as JSON.

    pip install uv
    python tests/benchmarks/lowest_versions.py ENVIRONMENT
    python tests/benchmarks/lowest_versions.py ENVIRONMENT --without transformers,trackio --pytest tests/tokenization
    python tests/benchmarks/lowest_versions.py ENVIRONMENT --pin fastapi==0.136.0,starlette==1.0.0 --pytest tests/generation

uv resolves every requirement and every extra to its lower bound; what they need in turn is the newest that fits. A bound that
another requirement lifts is not tested and is listed under `lifted`: leave that other one out with --without, which skips the
tests that need it. --pin tests versions in between. torch is the one that is installed here, or --torch: a lower one is not
to be had for every machine. mypy is not run: what it finds in the types of old libraries says nothing of the program.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)")


def bounds(without: set[str]) -> dict[str, str]:
    """Lower bound by package, of the requirements and all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    found = [match for line in lines if (match := REQUIREMENT.match(line))]
    return {match[1]: match[2] for match in found if match[1] not in without}


def resolve(lower: dict[str, str], pinned: list[str], folder: Path) -> dict[str, str]:
    """Version by package, everything that belongs into the environment."""
    asked, forced, pins = folder / "asked.txt", folder / "forced.txt", folder / "lowest.txt"
    asked.write_text("\n".join([*(f"{name}>={least}" for name, least in lower.items()), *pinned]), "utf-8")
    forced.write_text("\n".join(pinned), "utf-8")
    uv("pip", "compile", asked, "--resolution", "lowest-direct", "--override", forced, "--no-header", "--no-annotate", "-o", pins)
    return dict(line.split("==") for line in pins.read_text("utf-8").splitlines() if "==" in line)


def uv(*arguments: Any) -> None:
    """Run uv, which is in this environment or on PATH."""
    links = ["--find-links", os.environ["PIP_FIND_LINKS"]] if "PIP_FIND_LINKS" in os.environ else []
    subprocess.run([sys.executable, "-m", "uv", *map(str, arguments), "-q", *links], check=True)


def make(folder: Path) -> Path:
    """The Python of a new environment with the pinned versions and this checkout."""
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    python = environment / "bin" / "python"
    uv("pip", "install", "--python", python, "--compile-bytecode", "-r", folder / "lowest.txt", "--override", folder / "forced.txt")
    uv("pip", "install", "--python", python, "--no-deps", "-e", ROOT)
    return python


def tested(python: Path, arguments: list[str]) -> dict[str, Any]:
    """How the tests end there."""
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return {
        "end": lines[-1] if lines else done.stderr[-300:],
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:40],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment goes (about 1.2 GB)")
    parser.add_argument("--without", default="", help="packages left out, with commas")
    parser.add_argument("--pin", default="", help="NAME==VERSION, several with commas")
    parser.add_argument("--torch", default=version("torch"))
    parser.add_argument("--pytest", type=shlex.split, default=[], metavar="ARGUMENTS", help="in one string")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lower = bounds(set(options.without.split(",")))
    pins = resolve(lower, [f"torch=={options.torch}", *filter(None, options.pin.split(","))], folder)
    python = make(folder)
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "at_their_bound": {name: pins[name] for name, least in lower.items() if same(pins[name], least)},
        "lifted": {name: f"{least} to {pins[name]}" for name, least in lower.items() if not same(pins[name], least)},
        "beneath": {name: pins[name] for name in ("starlette", "huggingface-hub", "protobuf") if name in pins},
    }
    print(json.dumps({**report, "tests": tested(python, options.pytest)}, indent=2))


def same(one: str, other: str) -> bool:
    """Whether two versions are one: 2.0 is 2.0.0."""
    return one.split(".") == (other.split(".") + ["0"] * 3)[: one.count(".") + 1]


if __name__ == "__main__":
    main()
