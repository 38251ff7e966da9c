"""Which of several implementations is the fastest on this machine: measured once, then kept in the user's cache.

Another implementation gives other bits, so a busy machine must not change the choice. Other programs only slow a trial down, so the
fastest of many trials counts, and the implementations take turns. On a CPU a trial is the processor time of one thread, which does not
run while another program has the processor. The first result is used from then on, for this machine, this code and these libraries,
also by processes that ask at the same time.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from minigpt_cli.accel.install import install
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.models.contract import build_model
from minigpt_cli.models.layers import set_dropout_generator
from minigpt_cli.runstore import locks
from minigpt_cli.storage import atomic_io
from minigpt_cli.storage.downloads import cache_folder
from minigpt_cli.training.environment import computed_by

_LEAST_TRIALS, _MOST_TRIALS, _TRIALS_S = 5, 100, 0.25
_LOCK_TIMEOUT_S = 30.0  # for another process that measures the same
_SCORES = 1 << 21  # attention scores in one trial, which limits its windows

Seconds = Mapping[str, float]
"""By name of the implementation."""


def fastest(question: Mapping[str, Any], ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Seconds of each of `ways`, from the first measurement on this machine for this `question`."""
    here = {name: value for name, value in computed_by(device, compiled_graph=False).items() if name != "the number of threads"}
    asked = json.dumps([sorted(ways), question, here], sort_keys=True)
    try:
        folder = cache_folder() / "choices"
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        release = locks.acquire(folder / ".lock", _LOCK_TIMEOUT_S)
    except (OSError, MiniGPTError):  # the result cannot be kept
        return measured(ways, device)
    path = folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:20]}.json"
    try:
        if (found := _recalled(path, ways)) is None:
            found = measured(ways, device)
            if known := _recalled(path, ways):  # another process finished first, after the timeout
                return known
            with suppress(OSError, MiniGPTError):  # measured again next time
                atomic_io.write_atomic(path, json.dumps({"question": question, "seconds": found}))
        return found
    finally:
        if release is not None:
            release()


def _recalled(path: Path, ways: Mapping[str, Any]) -> dict[str, float] | None:
    """The kept result; None if it is missing or cannot be read."""
    with suppress(OSError, MiniGPTError, KeyError, TypeError, AttributeError):
        seconds = atomic_io.read_json(path)["seconds"]
        if seconds.keys() == ways.keys() and all(isinstance(s, float) and math.isfinite(s) and s > 0 for s in seconds.values()):
            return {name: seconds[name] for name in ways}
    return None


def measured(ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Seconds of the fastest of many trials of each of `ways`, in turns, without the first."""
    best = dict.fromkeys(ways, math.inf)
    with _alone(device) as clock:
        for way in ways.values():
            way()
        begun, trials = time.perf_counter(), 0
        while trials < _LEAST_TRIALS or (trials < _MOST_TRIALS and time.perf_counter() - begun < _TRIALS_S):
            for name, way in ways.items():
                start = clock()
                way()
                best[name] = min(best[name], clock() - start)
            trials += 1
    return {name: max(seconds, 1e-9) for name, seconds in best.items()}


@contextmanager
def _alone(device: torch.device) -> Iterator[Callable[[], float]]:
    """A clock in seconds that other programs disturb as little as possible: on a CPU the processor time of one thread."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield time.thread_time if device.type == "cpu" else lambda: _after_all_work(device)
    finally:
        torch.set_num_threads(threads)


def _after_all_work(device: torch.device) -> float:
    (torch.cuda if device.type == "cuda" else torch.mps).synchronize()
    return time.perf_counter()


def attention_paths(model: Any, batch_size: int, dtype: torch.dtype, device: torch.device, document_mask: bool = False) -> Seconds:
    """Seconds of one layer of this model, forward and backward with each attention path, for some windows of a batch; the rest of a step
    does not depend on the path."""
    one_layer, T = model.model_copy(update={"n_layer": 1}), model.block_size
    windows = max(1, min(batch_size, _SCORES // (model.n_head * T * T))) if device.type == "cpu" else batch_size
    trial = build_model(one_layer, vocab_size=2, seed=0).to(device).train()
    trial.compute_dtype = dtype  # type: ignore[assignment]
    set_dropout_generator(trial, torch.Generator(device).manual_seed(0))
    if document_mask:
        trial.end_of_text = 1  # type: ignore[assignment]
    ids = torch.zeros(windows, T, dtype=torch.int64, device=device)

    def way(path: str) -> Callable[[], object]:
        def run() -> None:
            output = install(trial, path)(ids)
            torch.autograd.grad(output.logits.sum() + output.aux_loss, list(trial.parameters()))

        return run

    question = {"attention": one_layer.model_dump(mode="json"), "windows": windows, "dtype": str(dtype)}
    question |= {"document_mask": True} if document_mask else {}
    return fastest(question, {path: way(path) for path in ("plain", "sdpa")}, device)


def products(device: torch.device) -> Seconds:
    """Seconds of a matrix product of a common training shape in float32 and in bfloat16."""

    def way(dtype: torch.dtype) -> Callable[[], object]:
        a, b = torch.ones(1024, 512, dtype=dtype, device=device), torch.ones(512, 512, dtype=dtype, device=device)
        return lambda: a @ b

    return fastest({"product": [1024, 512, 512]}, {"fp32": way(torch.float32), "bf16": way(torch.bfloat16)}, device)
