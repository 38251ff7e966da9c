"""Hardware and software that compute a run, for its record: its last bits depend on them."""

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

from minigpt_cli.accel import install
from minigpt_cli.bounds import line
from minigpt_cli.config import RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.runstore.records import Corpus, RunRecord, SplitRecord
from minigpt_cli.storage import native_build
from minigpt_cli.storage.atomic_io import one_line
from minigpt_cli.training.distributed import World

# Variables that make a library choose other instructions, algorithms or numbers of threads. Not among them: how to wait, where to log, and
# variables whose effect is recorded separately (OMP_NUM_THREADS, MINIGPT_NATIVE).
_LIBRARIES = (
    "ATEN_", "CUBLAS", "CUDNN_", "DNNL_", "KMP_DETERMINISTIC", "MKL_", "NCCL_ALGO", "NCCL_PROTO", "NPY_", "ONEDNN_", "OPENBLAS_",
    "PYTORCH_TUNABLEOP_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_BLAS_", "TORCH_COMPILE_", "TORCH_CUDNN_",
)  # fmt: skip
_SINGLE = {"GLIBC_TUNABLES", "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "OMP_THREAD_LIMIT", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"}
_IRRELEVANT = ("VERBOSE", "DEBUG", "CACHE_DIR", "LOG_LEVEL", "MKL_NUM_THREADS", "MKL_THREADING_LAYER")
_SEEN_ONLY = ("commands", "display")  # of the package: display code cannot change what is computed


def computed_by(device: torch.device, *, compiled_graph: bool) -> dict[str, str]:
    """Everything on this machine that the bits of a training step depend on. Kept in run.json and compared on resume.

    `compiled_graph`: whether torch.compile is used.
    """
    gpu: dict[str, str] = {}
    if device.type == "cuda":
        gpu = {"cuda": str(torch.version.cuda or torch.version.hip), "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    libraries = {"python": platform.python_version(), "numpy": np.__version__, "libc": " ".join(platform.libc_ver())}
    return {
        "minigpt": f"{version('minigpt-cli')} (code {_code()})",
        "torch": torch.__version__,
        **libraries,
        "the device": device_name(device),
        "the number of threads": str(torch.get_num_threads()),
        **_of_processor(),
        **gpu,
        **({"compiler": _compiler(device)} if compiled_graph else {}),
        **{name: one_line(value, 200) for name, value in sorted(os.environ.items()) if _matters(name)},
    }


def _of_processor() -> dict[str, str]:
    """Also recorded for a GPU: batches are made on the processor."""
    return {
        "processor": hashlib.sha256(native_build.processor()).hexdigest()[:8],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "kernels": ", ".join(f"{name} {_content(library)}" for name, library in install.libraries().items()) or "torch",
    }


def _matters(name: str) -> bool:
    return (name in _SINGLE or name.startswith(_LIBRARIES)) and not name.endswith(_IRRELEVANT)


def _content(library: ctypes.CDLL) -> str:
    """A hash of the loaded file, which another compiler changes."""
    return hashlib.sha256(Path(library._name).read_bytes()).hexdigest()[:8]


@cache
def _code() -> str:
    """A hash of this package's code, since two states of a working copy have the same version."""
    root = Path(__file__).parents[1]
    files = sorted(path.relative_to(root) for ending in ("py", "c", "h") for path in root.rglob(f"*.{ending}"))
    digest = hashlib.sha256()
    for file in files:
        if file.parts[0] not in _SEEN_ONLY:
            digest.update(f"{file.as_posix()}\0".encode() + (root / file).read_bytes() + b"\0")
    return digest.hexdigest()[:8]


@cache
def _compiler(device: torch.device) -> str:
    """The compiler that torch.compile uses: C++ for a CPU, Triton for a GPU."""
    try:
        if device.type == "cuda":
            return f"triton {version('triton')}"
        from torch._inductor.cpp_builder import get_cpp_compiler

        said = subprocess.run([get_cpp_compiler(), "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
        return said.partition("\n")[0]
    except (OSError, RuntimeError, PackageNotFoundError) as error:  # torch.compile itself reports what is missing
        return type(error).__name__


def device_name(device: torch.device) -> str:
    """The name of the device's hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple {platform.machine()} GPU"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _computed_by_all(device: torch.device, config: RunConfig, world: World) -> dict[str, str]:
    """`computed_by` of all processes of this run; values that differ are listed by rank."""
    here = world.gather(computed_by(device, compiled_graph=config.compute.compile == "on"))
    names = {name: None for one in here for name in one}
    found = {name: [one.get(name, "not set") for one in here] for name in names}
    windows = config.optim.windows * world.size
    return {"the number of processes": str(world.size), "the number of windows in a step": str(windows)} | {
        n: one_line(" / ".join(values if len(set(values)) > 1 else values[:1])) for n, values in found.items()
    }


def described(record: RunRecord, config: RunConfig, dataset: Dataset, model: torch.nn.Module, world: World) -> RunRecord:
    """The record with everything that is known before step 0."""
    device = world.device(config.compute.device)
    corpus = Corpus(
        label=dataset.label,
        sha256=dataset.sha256,
        cut=dataset.cut,
        n_documents=dataset.n_documents,
        dataset_dir=line(str(dataset.dir)),
        chats=dataset.chats,
        leak=dataset.leak,
        fetched=dataset.origins.fetched,
        splits={
            name: SplitRecord(sha256=split.sha256, n_tokens=len(split.tokens), n_chars=split.n_chars, n_bytes=split.n_bytes)
            for name, split in dataset.splits().items()
        },
    )
    return record.model_copy(
        update={
            "status": "running",
            "stop_reason": None,
            "versions": {**record.versions, "torch": torch.__version__},
            "device": config.compute.device,
            "device_name": device_name(device),
            "threads": torch.get_num_threads(),
            "world_size": world.size,
            "computed_by": _computed_by_all(device, config, world),
            "arch": config.model.arch,
            "tokenizer": dataset.tokenizer.name,
            "corpus": corpus,
            "vocab_size": dataset.tokenizer.vocab_size,
            "n_params": sum(p.numel() for p in model.parameters()),
            "n_active_params": model.n_active_params(),  # type: ignore[operator]
        }
    )
