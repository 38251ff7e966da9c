"""The C sources under sanitizers, for several processors, over odd shapes and against NumPy.

    python tests/benchmarks/sanitizers.py [--cases 200] [--seed 0] [NAME ...]

Each NAME is WATCH/PROGRAM/PROCESSOR. WATCH: `address` (memory and undefined behaviour), `thread` (data races), `none`. PROGRAM: decoder,
kernels, experts, attention, products, muon. PROCESSOR: `native`, `tiles` (Intel's matrix tiles, in plain C where the processor has none),
`x86-64`, `x86-64-v3`. Without names all of them run; what cannot run here is skipped with its reason. Exit code 1 if a sanitizer or a
comparison finds anything.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("native")
SOURCES = {
    "decoder": ROOT / "minigpt_cli/generation/decoders/csrc/decoder.c",
    **{name: ROOT / f"minigpt_cli/accel/{name}.c" for name in ("kernels", "experts", "attention", "products", "muon")},
}
WATCHES = {
    "address": ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    "thread": ("-fsanitize=thread",),
    "none": (),
}
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
TILES = ("-march=native", "-mamx-tile", "-mamx-bf16", "-mamx-int8", "-include", str(PROGRAMS / "tiles.h"))
PROCESSORS = {"native": ("-march=native",), "tiles": TILES, "x86-64": ("-march=x86-64",), "x86-64-v3": ("-march=x86-64-v3",)}
NAMES = [
    *(f"{watch}/{program}/{processor}" for watch in ("address", "thread") for program, processor in (
        ("decoder", "native"), ("decoder", "tiles"), ("kernels", "native"), ("experts", "native"),
        ("attention", "native"), ("attention", "tiles"), ("products", "native"), ("muon", "native"),
    )),
    *(f"address/{program}/{processor}" for processor in ("x86-64", "x86-64-v3") for program in SOURCES),
]  # fmt: skip


class Unavailable(Exception):
    """Why something cannot run on this machine."""


@functools.cache
def processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in text.splitlines() if line.startswith("flags")), "").split())


def compiler(watch: str, processor: str) -> str:
    """gcc, if it and this processor can do what is asked. Raises Unavailable."""
    found = shutil.which("gcc")
    if sys.platform != "linux" or found is None:
        raise Unavailable("no gcc on Linux")
    if processor != "native" and platform.machine() != "x86_64":
        raise Unavailable(f"not an x86-64 processor: {platform.machine()}")
    needed = {"tiles": {"avx512bw", "avx512_bf16"}, "x86-64-v3": {"avx2", "fma"}}.get(processor, set())
    if missing := needed - processor_flags():
        raise Unavailable(f"this processor lacks {', '.join(sorted(missing))}")
    if watch in RUNTIMES:
        runtime(watch)
    return found


@functools.cache
def runtime(watch: str) -> str:
    """The sanitizer's library, which has to be loaded before Python's own. Raises Unavailable where it is missing or does not run here."""
    name = RUNTIMES[watch]
    path = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout.strip()
    if not os.path.isabs(path):
        raise Unavailable(f"gcc has no {name}")
    tried = subprocess.run(
        [sys.executable, "-c", ""], env={**os.environ, **options(watch), "LD_PRELOAD": path}, capture_output=True, text=True, check=False
    )
    if tried.returncode:
        raise Unavailable(f"{name} does not run here: {tried.stderr.strip()[:200]}")
    return path


def options(watch: str) -> dict[str, str]:
    """Python itself is not watched, and its leaks at exit are none of ours."""
    return {
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:report_signal_unsafe=0:halt_on_error=1",
        "PYTHONMALLOC": "malloc",  # so that every array has a border of its own
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def build(watch: str, program: str, processor: str, folder: Path) -> Path:
    """The shared library of a source. Raises Unavailable."""
    gcc = compiler(watch, processor)
    flags = ("-O1", "-g1", "-Wno-psabi", "-std=gnu11", "-fPIC", "-ffp-contract=fast", *WATCHES[watch])
    sources = [(SOURCES[program], (*PROCESSORS[processor], "-fopenmp" if program != "decoder" else "-pthread"))]
    if program != "decoder":
        sources.append((PROGRAMS / "team.c", ()))
    objects = []
    for source, more in sources:
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run([gcc, *flags, *more, "-c", str(source), "-o", objects[-1]], check=True)
    library = folder / "watched.so"
    subprocess.run([gcc, "-shared", "-pthread", *WATCHES[watch], "-Wl,-Bsymbolic", *objects, "-o", str(library), "-lm"], check=True)
    return library


def run(name: str, cases: int, seed: int) -> subprocess.CompletedProcess[str]:
    """Build and drive one of NAMES; the driver's result. Raises Unavailable."""
    watch, program, processor = name.split("/")
    with tempfile.TemporaryDirectory() as folder:
        library = build(watch, program, processor, Path(folder))
        environment = {**os.environ, **options(watch), "PYTHONPATH": str(ROOT)}
        if watch in RUNTIMES:
            environment["LD_PRELOAD"] = runtime(watch)
        script = [str(PROGRAMS / "decode.py")] if program == "decoder" else [str(PROGRAMS / "train.py"), program]
        command = [sys.executable, *script, str(library), str(cases), str(seed)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--cases", type=int, default=200, help="models or calls of each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.names:
        began = time.perf_counter()
        try:
            done = run(name, arguments.cases, arguments.seed)
        except Unavailable as reason:
            print(f"{name}: skipped: {reason}", flush=True)
            continue
        except subprocess.CalledProcessError:  # the compiler has said why
            print(f"{name}: FAILED: it does not compile", flush=True)
            failed += 1
            continue
        failed += done.returncode != 0
        verdict = done.stdout.strip() if done.returncode == 0 else f"FAILED ({done.returncode})\n{done.stdout}{done.stderr}"
        print(f"{name}: {verdict}, {time.perf_counter() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
