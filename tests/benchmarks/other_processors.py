"""minigpt on an aarch64 processor that this machine imitates, and its C sources compiled for systems that it is not.

    python tests/benchmarks/other_processors.py compile [--zig PATH]   every C source, for aarch64 and macOS
    python tests/benchmarks/other_processors.py prepare FOLDER         Python, torch and the rest for aarch64
    python tests/benchmarks/other_processors.py run FOLDER ARGUMENT…   Python there, as in `run FOLDER -m minigpt_cli --version -v`

`compile` needs the package ziglang, whose C compiler has the headers of every system. `prepare` takes packages of Debian and PyPI; it and
`run` need qemu-user-static, gcc-aarch64-linux-gnu and `dpkg --add-architecture arm64`. Results of imitated arithmetic count, its times
do not: it is about 30 times slower.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

from minigpt_cli.storage.native_build import FLAGS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "accel/kernels.c": ("-fopenmp",),
    "accel/experts.c": ("-fopenmp",),
    "accel/attention.c": ("-fopenmp",),
    "accel/products.c": ("-fopenmp",),
    "accel/muon.c": ("-fopenmp",),
    "generation/decoders/csrc/decoder.c": ("-pthread",),
    "tokenization/words.c": ("-pthread",),
}
TARGETS = {
    "aarch64-linux-gnu": "-mcpu=neoverse_n1",
    "aarch64-macos": "-mcpu=apple_m1",
    "x86_64-macos": "-march=x86_64_v3",
}
DEBIAN = ("python3.11:arm64", "libgomp1:arm64", "libstdc++6:arm64")
TORCH = "torch==2.10.0"  # the last wheel for aarch64 on PyPI that does not ask for CUDA's libraries
COMPILER = """#!/bin/sh
for a; do shift; [ "$a" = -mcpu=native ] && a=-mcpu=neoverse-n1; set -- "$@" "$a"; done
exec aarch64-linux-gnu-gcc "$@"
"""


def compile_all(zig: str) -> int:
    """Compile every source for every target; the number of failures."""
    failed = 0
    for target, processor in TARGETS.items():
        for source in SOURCES:
            said = errors_of(source, [zig, "cc", "-target", target, processor])
            print(f"{target}: {source}: {said or 'compiles'}", flush=True)
            failed += bool(said)
    return failed


def errors_of(source: str, compiler: list[str]) -> str:
    """What a compiler has against one of SOURCES; empty if it compiles."""
    with tempfile.TemporaryDirectory() as scratch:
        caches = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}  # read by zig alone
        command = [*compiler, *FLAGS, *SOURCES[source], "-c", str(ROOT / "minigpt_cli" / source), "-o", f"{scratch}/unit.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **caches})
    lines = done.stderr.splitlines()
    return next((line for line in lines if "error" in line), f"it ended with {done.returncode}") if done.returncode else ""


def prepare(folder: Path) -> None:
    """Fill `folder` with a root file system for aarch64 and a site folder with the compiled packages that minigpt needs."""
    debs, wheels, site = folder / "debs", folder / "wheels", folder / "site"
    for part in (debs, wheels, site):
        part.mkdir(parents=True, exist_ok=True)
    leave_out = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    needs = subprocess.run(
        ["apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in leave_out), *DEBIAN], capture_output=True, text=True, check=True
    ).stdout
    packages = sorted(set(re.findall(r"^[a-z0-9.+-]+:arm64$", needs, re.MULTILINE)))
    subprocess.run(["apt-get", "download", *packages], cwd=debs, check=True)
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(deb), str(folder / "root")], check=True)
    platforms = [f"--platform=manylinux{name}_aarch64" for name in ("_2_28", "2014")]
    same = [f"{name}=={version(name)}" for name in ("pydantic-core", "hypothesis")]  # as the parts of them that are not compiled
    compiled = [TORCH, "numpy", "tokenizers", "safetensors", *same]
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version=3.11", *platforms]
    subprocess.run([*download, "-d", str(wheels), *compiled], check=True)
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    (folder / "cc").write_text(COMPILER)
    (folder / "cc").chmod(0o755)


def run(folder: Path, arguments: list[str]) -> int:
    """The exit code of Python for aarch64 with `arguments`; packages without compiled parts are those of this Python."""
    import typer

    pure = Path(typer.__file__).parents[1]
    here = {
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT), str(ROOT / "tests"), str(pure)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CC": str(folder / "cc"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    python = ["qemu-aarch64-static", "-L", str(folder / "root"), str(folder / "root/usr/bin/python3.11")]
    return subprocess.run([*python, *arguments], cwd=ROOT, env={**os.environ, **here}, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("compile").add_argument("--zig", default="zig")
    what.add_parser("prepare").add_argument("folder", type=Path)
    running = what.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if given.what == "compile":
        return 1 if compile_all(given.zig) else 0
    folder = given.folder.resolve()
    if given.what == "prepare":
        prepare(folder)
        return 0
    return run(folder, given.arguments)


if __name__ == "__main__":
    sys.exit(main())
