"""What computes here: for `minigpt --version -v`, and for a run's record, since the last bits of a training depend on it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

import minigpt_cli
from minigpt_cli.accel import expert_kernels, kernels, native_build
from minigpt_cli.generation.decoders import c
from minigpt_cli.storage.atomic_io import one_line

# Variables that make a library choose other instructions, algorithms or numbers of threads. How to wait, where to log and what is said
# otherwise here (OMP_NUM_THREADS, MINIGPT_NATIVE) are not among them.
_LIBRARIES = ("ATEN_", "CUBLAS", "CUDNN_", "DNNL_", "KMP_DETERMINISTIC", "MKL_", "ONEDNN_", "OPENBLAS_", "TORCHINDUCTOR_", "TORCH_BLAS_")
_SINGLE = {"GLIBC_TUNABLES", "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "OMP_THREAD_LIMIT", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"}
_OF_NO_ACCOUNT = ("VERBOSE", "CACHE_DIR", "LOG_LEVEL", "MKL_NUM_THREADS", "MKL_THREADING_LAYER")
_SEEN_ONLY = ("commands", "display")  # of the package: what people see cannot change what is computed


def describe() -> dict[str, str]:
    """torch's version, the device that `--device auto` would choose, and what trains and decodes on this processor; builds what is in C."""
    if torch.cuda.is_available():
        device = f"cuda, {torch.cuda.get_device_name()}"
    else:
        device = "mps" if torch.backends.mps.is_available() else f"cpu, {torch.get_num_threads()} threads"
    training = {
        "tiles": "C, attention on the processor's matrix tiles",
        "c": "C",
        "torch": f"torch, slower: {kernels.why_not()}",
    }[kernels.in_use()]
    reason = c.why_not()
    return {
        "torch": torch.__version__,
        "device": device,
        "kernels": training,
        "decoder": f"torch, slower: {reason}" if reason else "native",
    }


def computed_by(device: torch.device, *, compiled_graph: bool) -> dict[str, str]:
    """Everything here that the bits of a training step depend on: equal dictionaries, equal bits. Kept in run.json and compared on resume.

    `compiled_graph`: torch.compile takes part.
    """
    libraries = {"python": platform.python_version(), "numpy": np.__version__, "libc": " ".join(platform.libc_ver())}
    return {
        "minigpt": f"{version('minigpt-cli')} (code {_code()})",
        "torch": torch.__version__,
        **libraries,
        "the device": device_name(device),
        "the number of threads": str(torch.get_num_threads()),
        **_of_processor(),
        **(_of_gpu() if device.type == "cuda" else {}),
        **({"compiler": _compiler(device)} if compiled_graph else {}),
        **{name: one_line(value, 200) for name, value in sorted(os.environ.items()) if _matters(name)},
    }


def _of_processor() -> dict[str, str]:
    """Batches, and whatever a GPU does not do, are made here too."""
    made = {"c": kernels.library(), "experts": expert_kernels.library(), "tiles": kernels.tiles()}
    return {
        "processor": hashlib.sha256(native_build.processor()).hexdigest()[:8],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "kernels": ", ".join(f"{name} {_content(library)}" for name, library in made.items() if library) or "torch",
    }


def _of_gpu() -> dict[str, str]:
    return {"cuda": str(torch.version.cuda or torch.version.hip), "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]


def _matters(name: str) -> bool:
    return (name in _SINGLE or name.startswith(_LIBRARIES)) and not name.endswith(_OF_NO_ACCOUNT)


def _content(library: ctypes.CDLL) -> str:
    """A hash of the file that was loaded: another compiler makes another."""
    return hashlib.sha256(Path(library._name).read_bytes()).hexdigest()[:8]


@cache
def _code() -> str:
    """A hash of this package's own code, since a version does not tell two states of a working copy apart."""
    root = Path(minigpt_cli.__file__).parent
    files = sorted(path.relative_to(root) for ending in ("py", "c", "h") for path in root.rglob(f"*.{ending}"))
    digest = hashlib.sha256()
    for file in files:
        if file.parts[0] not in _SEEN_ONLY:
            digest.update(f"{file.as_posix()}\0".encode() + (root / file).read_bytes() + b"\0")
    return digest.hexdigest()[:8]


@cache
def _compiler(device: torch.device) -> str:
    """What torch.compile builds with: a C++ compiler for a CPU, Triton for a GPU."""
    try:
        if device.type == "cuda":
            return f"triton {version('triton')}"
        from torch._inductor.cpp_builder import get_cpp_compiler

        said = subprocess.run([get_cpp_compiler(), "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
        return said.partition("\n")[0]
    except (OSError, RuntimeError, PackageNotFoundError) as error:  # torch.compile itself says what is missing
        return type(error).__name__


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple {platform.machine()} GPU"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
