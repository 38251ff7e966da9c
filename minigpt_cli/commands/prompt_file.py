"""minigpt generate --prompts: continue every prompt of a file, many at once; the texts come in the file's order, as JSONL.

Each text is the one that the same prompt gets alone. With --out the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_cli.commands.generate import new_seed, question
from minigpt_cli.display import console
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError, unknown_name
from minigpt_cli.generation.engine import GenerationRequest
from minigpt_cli.generation.samples import Sample
from minigpt_cli.generation.sampling import Sampling
from minigpt_cli.storage import atomic_io

if TYPE_CHECKING:
    from minigpt_cli.generation.open_run import LoadedModel

_AT_ONCE = 16  # sequences that are decoded together
_LIMIT = 1 << 26  # bytes of the file
_SAMPLING = {field.name: float if isinstance(field.default, float) else int for field in fields(Sampling)}
_TYPES: dict[str, type] = {"prompt": str, "max_new_tokens": int, "seed": int, **_SAMPLING}


@dataclass(frozen=True)
class _Row:
    """One prompt: where it stands, what is copied to its result, and how to continue it."""

    where: str
    shown: dict[str, Any]
    prompt: str
    request: GenerationRequest  # without ids


def write_all(loaded: LoadedModel, source: str, out: Path | None, request: GenerationRequest, *, seed: int | None, chat: bool) -> None:
    """Continue every prompt of the file `source`, or of stdin for `-`, as `request` and its own row say.

    Raises UsageError for a row with an error, before anything is written.
    """
    rows = [_with_ids(row, loaded, chat=chat) for row in _rows(source, request, seed)]
    if not rows:
        raise UsageError(f"{source} holds no prompt: write one on each line")
    written = 0 if out is None else _written(out, rows)
    if written:
        console.notice(f"{out} has {written if written < len(rows) else 'all'} of {len(rows)} texts already")
    if written == len(rows):
        return
    with ExitStack() as stack:
        file = sys.stdout.buffer if out is None else stack.enter_context(out.open("ab"))
        advance = stack.enter_context(console.progress(quiet=out is None))
        try:
            for row, sample in _in_order(loaded, rows[written:]):
                file.write((json.dumps(_result(row, sample), ensure_ascii=False) + "\n").encode())
                file.flush()
                written += 1
                advance("writing", written, len(rows))
        except KeyboardInterrupt:
            if out is not None:
                console.notice(f"{written} of {len(rows)} texts are in {out}: the same command writes the others")
            raise
    if out is not None:
        console.notice(f"wrote {len(rows)} texts to {out}")


def _rows(source: str, request: GenerationRequest, seed: int | None) -> Iterator[_Row]:
    """The prompts of a file. Raises UsageError that names the line."""
    try:
        data = sys.stdin.buffer.read(_LIMIT + 1) if source == "-" else atomic_io.read_bounded(Path(source), _LIMIT)
        lines = data.decode("utf-8").removeprefix("\ufeff").splitlines()
    except OSError as error:
        raise UsageError(f"--prompts {source}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts {source} is not UTF-8 text (byte {error.start})") from None
    if len(data) > _LIMIT:
        raise UsageError(f"--prompts {source} is larger than {_LIMIT:,} bytes: split it")
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    is_json = source.endswith((".jsonl", ".ndjson")) or (source == "-" and bool(kept) and kept[0][1].startswith("{"))
    for number, line in kept:
        where = f"{'stdin' if source == '-' else source} line {number}"
        try:
            row = atomic_io.parse_json(line.encode(), where) if is_json else {"prompt": line}
            yield _row(row, where, request, seed)
        except RunDamaged as error:
            raise UsageError(str(error)) from None


def _row(row: Any, where: str, request: GenerationRequest, seed: int | None) -> _Row:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UsageError(f'{where} is not an object with a "prompt"')
    known = [*_TYPES, "stop", "id"]
    if unknown := [name for name in row if name not in known]:
        raise UsageError(f"{where}: {unknown_name('field', unknown[0], known)}")
    for name, kind in _TYPES.items():
        value = row.get(name, kind())
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise UsageError(f"{where}: {name} is not a {'text' if kind is str else 'number'}")
    stop = row.get("stop", list(request.stop))
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(one, str) for one in stop):
        raise UsageError(f"{where}: stop is not a text or a list of texts")
    try:
        sampling = replace(request.sampling, **{name: row[name] for name in _SAMPLING if name in row})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    wanted = replace(
        request,
        sampling=sampling,
        max_new_tokens=row.get("max_new_tokens", request.max_new_tokens),
        seed=row.get("seed", new_seed() if seed is None else seed),
        stop=tuple(stop),
        score=True,
    )
    return _Row(where, {name: row[name] for name in ("id", "prompt") if name in row}, row["prompt"], wanted)


def _with_ids(row: _Row, loaded: LoadedModel, *, chat: bool) -> _Row:
    """The row with the ids of its prompt. Raises UsageError for characters that the run does not know, or no tokens to write."""
    try:
        asked = question(loaded, row.prompt)[0] if chat else row.prompt
        request = replace(row.request, ids=loaded.prompt_ids(asked))
    except MiniGPTError as error:
        raise UsageError(f"{row.where}: {error}") from None
    if request.max_new_tokens < 1:
        raise UsageError(f"{row.where}: max_new_tokens {request.max_new_tokens} must be at least 1")
    return replace(row, request=request)


def _in_order(loaded: LoadedModel, rows: Sequence[_Row]) -> Iterator[tuple[_Row, Sample]]:
    """Every row and its text, in order; those behind it are decoded meanwhile."""
    engine = loaded.new_engine(min(_AT_ONCE, max(1, len(rows))))
    samples = [Sample() for _ in rows]
    number_of: dict[int, int] = {}  # row by the engine's number
    submitted = complete = 0
    while complete < len(rows):
        while submitted < len(rows) and submitted - complete < 2 * _AT_ONCE:
            number_of[engine.submit(rows[submitted].request)] = submitted
            submitted += 1
        for step in engine.step():
            samples[number_of[step.request]].add(step)
        while complete < submitted and samples[complete].stop_reason is not None:
            yield rows[complete], samples[complete]
            samples[complete] = Sample()  # its text is no longer needed
            complete += 1


def _result(row: _Row, sample: Sample) -> dict[str, Any]:
    own = {"text": sample.text, "n_tokens": len(sample.tokens), "stop_reason": sample.stop_reason, "seed": row.request.seed}
    return row.shown | own | {"nats_per_token": sample.nats_per_token}


def _written(out: Path, rows: Sequence[_Row]) -> int:
    """How many rows `out` has; a line that was cut off is removed. Raises UsageError if it is not a beginning of these results."""
    if not out.exists():
        atomic_io.check_parent(out)
        return 0
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines()
    for row, line in zip(rows, lines, strict=False):
        try:
            found = atomic_io.parse_json(line, str(out))
        except RunDamaged:
            found = None
        if not isinstance(found, dict) or any(found.get(name) != value for name, value in row.shown.items()):
            raise UsageError(f"{out} holds something other than the texts of these prompts ({row.where}): choose another --out")
    if len(lines) > len(rows):
        raise UsageError(f"{out} has {len(lines)} lines and there are {len(rows)} prompts: choose another --out")
    if len(whole) < len(data):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return len(lines)
