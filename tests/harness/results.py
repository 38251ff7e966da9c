"""All that a run's directory says, so that two runs can be compared bit for bit; and what is wrong with how a command ended."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minigpt_cli import checkpoints
from minigpt_cli.runstore.directory import PREVIOUS, Run
from minigpt_cli.verify import verify

_TIMES = {
    "argv",
    "elapsed_s",
    "tokens_per_s",
    "created_at",
    "updated_at",
    "placed_at",
    "resume_exact_history",
    "name",
    "run",
    "files",
    "metrics_bytes",
    "checksum",
}


def timeless(value: Any) -> Any:
    """JSON without what depends on the clock, the name, how it was typed or the number of sessions."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in _TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def everything(run: Run) -> dict[str, Any]:
    """Weights, optimizer, generators, counters, metrics, configuration and record, times aside."""
    point = checkpoints.load_resume(run.refresh())
    tensors = {"last": point.last, "resume": point.resume}
    if "best.safetensors" in point.record.files:
        tensors["best"] = checkpoints.load_tensors(run.file("best.safetensors"))
    return {
        **{kind: {n: _bits(t) for n, t in group.items()} for kind, group in tensors.items()},
        "state": timeless(point.resume_state),
        "metrics": [timeless(e.model_dump()) for e in run.metrics()],
        "record": timeless(run.record.model_dump()),
        "config": run.config.model_dump(),
    }


def _bits(tensor: Tensor) -> bytes:
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def differences(whole: Run, parts: Run, *, repeated: bool = False) -> list[str]:
    """What of `parts` is not as in `whole`, each a line; and whatever a kill left behind in it. If `whole` was `repeated` from the
    configuration of `parts`, it does not know what was left open there, nor of a group."""
    expected, found = everything(whole), everything(parts)
    for record in (expected["record"], found["record"]) if repeated else ():
        record.update(left_open=None, group=None)
    wrong = [_where(part, expected.get(part), found.get(part)) for part in {**expected, **found} if expected.get(part) != found.get(part)]
    changed = {session.step for session in whole.record.resume_exact_history if not session.exact}  # by who resumed
    inexact = [s for s in parts.record.resume_exact_history if not s.exact and s.step not in changed]
    files = [{str(p.relative_to(run.dir)) for p in run.dir.rglob("*") if p.is_file()} for run in (whole, parts)]
    strange = [f"the file {name}" for name in sorted(files[0] ^ files[1]) if _matters(name)]
    problems = [f"verify: {finding.file}: {finding.message}" for finding in verify(parts) if finding.level == "problem"]
    return wrong + [f"session of step {s.step} is not exact: {'; '.join(s.reasons)}" for s in inexact] + strange + problems


def _matters(name: str) -> bool:
    """Whether two equal runs must both have this file: not so for scores (a cache), locks and files of the save before."""
    return not name.startswith("scores/") and not name.endswith(".lock") and (name.endswith(".tmp") or not name.startswith(f"{PREVIOUS}/"))


def _where(part: str, expected: Any, found: Any) -> str:
    """The part, and of a table or list its first different entry."""
    if isinstance(expected, list) and isinstance(found, list):
        expected, found = (dict(enumerate(values)) for values in (expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        part, expected, found = f"{part}.{names[0]} (of {len(names)})", expected.get(names[0]), found.get(names[0])
    return part if isinstance(expected, bytes) else f"{part}: {str(expected)[:300]} → {str(found)[:300]}"


def without_a_whole_generation(run: Run) -> list[str]:
    """What `runs verify` finds wrong with the newest save, unless the one before it is whole: a kill may leave that, and no less."""
    problems = [finding for finding in verify(run) if finding.level == "problem"]
    newest, before = ([f"{f.file}: {f.message}" for f in problems if f.file.startswith(PREVIOUS) == old] for old in (False, True))
    return newest if before or not run.file(PREVIOUS).is_dir() else []


def complaint(code: int, said: str, *, findings: bool = False, signalled: bool = False) -> str | None:
    """What is wrong with an exit code and the words on stderr, if anything is. With `findings`, to fail without an error is right too;
    130 and 143 are right for who was `signalled`."""
    if code not in (0, 1, 2, 3) and not (signalled and code in (130, 143)):
        return f"exit code {code}: {said[-200:]!r}"
    if "Traceback" in said or "panicked" in said:
        return f"traceback printed: {' | '.join(line.strip() for line in said.strip().splitlines()[-6:])[-600:]}"
    if "\x1b[31m" in said or "\x1b]0" in said:
        return "escape sequence on stderr"
    errors = sum(line.lower().startswith("error") for line in said.splitlines())
    if errors > 1 or (code in (1, 2, 3) and not errors and not findings):
        return f"not one error line: {said[-300:]!r}"
    return None
