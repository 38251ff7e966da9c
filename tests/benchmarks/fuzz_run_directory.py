"""Damage a run directory in every way that chance and its own code suggest, and open it with every command.

    python tests/benchmarks/fuzz_run_directory.py --minutes 10 [--seed 0]

Mutations flip, cut, insert and swap bytes, put hostile values into JSON, and half of the time sign the result with fresh
checksums, so that what lies behind the checksums is reached too. The search is guided by coverage: an input that reaches
lines of minigpt_cli that none reached before is kept and mutated further. An outcome is right if it is a result or one
line with exit code 1, 2 or 3; a traceback, a hang (20 s of work or 200 s of waiting), two gigabytes of memory, a second
line, an escape sequence, a temporary file left behind, or a changed run are findings. Prints one JSON document; exit code
1 if there are findings.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import tiny
from harness.results import complaint

from minigpt_cli import cli
from minigpt_cli.errors import RunDamaged
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.records import FileRecord, _checksum
from minigpt_cli.storage import atomic_io

TINY = [*tiny.training(4, 2, 16), "--save-every", "1"]
COMMANDS = [
    "runs list",
    "runs leaderboard",
    "runs show RUN",
    "runs verify RUN",
    "runs diff RUN good",
    "runs plot RUN",
    "runs list --json",
    "generate RUN --max-new-tokens 3 --prompt a",
    "generate RUN --ckpt last --max-new-tokens 3 --prompt a --greedy",
    "eval RUN",
    "train --resume RUN --time-limit 1",
    "train --resume RUN --max-steps 6 --time-limit 1",
    "runs export RUN --out EXPORTED",
    "compare RUN good",
    "runs watch RUN",
]
HOSTILE = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**18,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "NaN",
    "../../etc/passwd",
    "/etc/passwd",
    "\x1b[31mred\x1b]0;title\x07",
    "a\nb",
    "\x00",
    "\ud800",
    "x" * 10_000,
    [],
    {},
    [[]] * 100,
    {"a": {"a": {"a": {}}}},
    "bigram",
    "moe",
    "finished",
]
TIMEOUT_S = 20
MEMORY = 2 << 30


class Hang(BaseException):
    """The time is up."""


def make_runs(folder: Path) -> None:
    """Two small trained runs, `victim` and `good`, and their data, under `folder`."""
    os.environ["MINIGPT_DATA_DIR"] = str(folder / "data")
    os.environ["MINIGPT_RUNS_DIR"] = str(folder / "runs")
    (folder / "text.txt").write_text(tiny.text(3000))
    for name in ("victim", "good"):
        code, out = call(["train", str(folder / "text.txt"), "--name", name, *TINY])
        if code != 0:
            sys.exit(f"could not train a run to damage: {out}")


def call(arguments: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command line in this process, the C level included."""
    with tempfile.TemporaryFile() as log, contextlib.redirect_stdout(_stream()), contextlib.redirect_stderr(_stream()) as said:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            code = cli.run(arguments)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        said.flush()
        log.seek(0)
        return code, said.buffer.getvalue().decode("utf-8", "replace") + log.read().decode("utf-8", "replace")  # type: ignore[attr-defined]


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


# ---- damage


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four things done to it."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(7):
            case 0 if made:
                made[at % len(made)] ^= 1 << chance.randrange(8)
            case 1 if made:
                made[at % len(made)] = chance.choice(b'\x00\xff\n"{}[]:,019-\\e')
            case 2:
                del made[at : at + chance.randint(1, 1 + len(made) // 4)]
            case 3:
                made[at:at] = chance.randbytes(chance.randint(1, 30))
            case 4:
                made[at:at] = made[at // 2 : at // 2 + chance.randint(1, 200)]
            case 5:
                del made[at:]
            case _ if len(made) >= 8:
                made[:8] = chance.choice([2**63, 2**64 - 1, 0, 1, len(made), 2**32]).to_bytes(8, "little")
    return bytes(made)


def mutate_json(data: bytes, chance: random.Random) -> bytes:
    """The JSON in `data` with one value replaced, removed, added or moved."""
    try:
        content = json.loads(data)
    except ValueError:
        return mutate_bytes(data, chance)
    spots = list(_spots(content))
    if not spots:
        return json.dumps(chance.choice(HOSTILE), default=str).encode("utf-8", "surrogatepass")
    for _ in range(chance.randint(1, 2)):
        holder, key = chance.choice(spots)
        with contextlib.suppress(KeyError, IndexError):
            match chance.randrange(6):
                case 0:
                    del holder[key]
                case 1:
                    other, there = chance.choice(spots)
                    holder[key] = json.loads(json.dumps(other[there]))
                case 2 if isinstance(holder, dict):
                    holder[chance.choice(["extra", "schema_version", "files", "\x1b[31m", "__metadata__"])] = chance.choice(HOSTILE)
                case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                    holder[key] = holder[key] * chance.choice([-1, 0, 2, 1000, 10**9])
                case _:
                    holder[key] = chance.choice(HOSTILE)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield value, key
        yield from _spots(inner)


def mutate_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header says something else."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data):
        return mutate_bytes(data, chance)
    header = mutate_json(data[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def mutated(run: Path, chance: random.Random) -> dict[str, bytes]:
    """New content of one or two files of the run; signed afresh half of the time."""
    names = [str(p.relative_to(run)) for p in sorted(run.rglob("*")) if p.is_file() and not p.is_symlink()]
    changed: dict[str, bytes] = {}
    for name in chance.sample(names, chance.choice([1, 1, 1, 2])):
        data = (run / name).read_bytes()
        how = [mutate_bytes]
        if name.endswith((".json", ".jsonl")):
            how += [mutate_json, mutate_json]
        elif name.endswith(".safetensors"):
            how += [mutate_header, mutate_header]
        changed[name] = chance.choice(how)(data, chance)
    if chance.random() < 0.6:
        changed |= signed(run, changed)
    return changed


def signed(run: Path, changed: dict[str, bytes]) -> dict[str, bytes]:
    """The run.json of both generations, vouching for the changed files, each with a checksum of its own that is right."""
    made = {}
    for folder in ("", "previous/"):
        try:
            content = json.loads(changed.get(folder + "run.json") or (run / folder / "run.json").read_bytes())
            files = content["files"]
            for name in files:
                data = changed.get(folder + name)
                if data is not None:
                    files[name] = FileRecord(sha256=atomic_io.sha256(data), bytes=len(data)).model_dump()
            content.pop("checksum", None)
            made[folder + "run.json"] = json.dumps({**content, "checksum": _checksum(content)}).encode()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return made


def trick(run: Path, chance: random.Random) -> None:
    """Something that is not in a file's content: a link, a pipe, a folder, a sparse giant."""
    victim = chance.choice(
        ["run.json", "config.json", "best.safetensors", "resume.safetensors", "metrics.jsonl", "tokenizer.json", ".lock", "previous"]
    )
    path = run / victim
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    match chance.randrange(5):
        case 0:
            path.symlink_to(chance.choice(["/etc/passwd", "/dev/zero", "../good/" + victim, victim, "/nonexistent"]))
        case 1:
            os.mkfifo(path)
        case 2:
            path.mkdir()
        case 3:
            with path.open("wb") as file:
                file.truncate(1 << 42)


# ---- judging


class Coverage:
    """Lines of minigpt_cli that were reached."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self.new = False

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if "minigpt_cli" not in frame.f_code.co_filename:
            return None
        return self.line

    def line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            spot = (frame.f_code.co_filename, frame.f_lineno)
            if spot not in self.lines:
                self.lines.add(spot)
                self.new = True
        return self.line


def judge(folder: Path, command: str, coverage: Coverage | None = None) -> str | None:
    """Run a command on the damaged run; what is wrong with the outcome, if anything is."""
    before = _bytes_under(folder / "runs" / "good")
    victim = _bytes_under(folder / "runs" / "victim")
    exported = folder / "exported"
    arguments = [str(exported) if word == "EXPORTED" else "victim" if word == "RUN" else word for word in command.split()]
    signal.setitimer(signal.ITIMER_PROF, TIMEOUT_S)
    signal.alarm(10 * TIMEOUT_S)
    sys.settrace(coverage.trace if coverage else None)
    try:
        code, said = call(arguments)
    except Hang:
        return "hang"
    except BaseException as error:
        last = [f for f in traceback.extract_tb(error.__traceback__) if "minigpt_cli" in f.filename]
        return f"{type(error).__name__} at {Path(last[-1].filename).name}:{last[-1].lineno}" if last else f"{type(error).__name__}"
    finally:
        sys.settrace(None)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(exported, ignore_errors=True)
    if wrong := complaint(code, said, findings=command.startswith("runs verify")):
        return wrong
    if "out of memory" in said:
        return "out of memory"
    if list((folder / "runs").rglob("*.tmp")):
        return "temporary file left behind"
    if _bytes_under(folder / "runs" / "good") != before:
        return "another run was changed"
    if not command.startswith("train") and _bytes_under(folder / "runs" / "victim") != victim:
        return "reading changed the run"
    return None


def _bytes_under(run: Path) -> dict[str, str]:
    """Checksums of the files that no reader may change."""
    names = ("best.safetensors", "last.safetensors", "resume.safetensors", "run.json", "config.json", "tokenizer.json", "metrics.jsonl")
    found = {}
    for name in names:
        with contextlib.suppress(OSError, RunDamaged):
            found[name] = snapshots.checksum(run / name).sha256 if (run / name).lstat().st_size < 1 << 24 else "giant"
    return found


def restore(folder: Path) -> None:
    shutil.rmtree(folder / "runs", ignore_errors=True)
    shutil.copytree(folder / "runs-as-made", folder / "runs", symlinks=True)
    snapshots.forget()


def write(run: Path, changed: dict[str, bytes]) -> None:
    for name, data in changed.items():
        (run / name).unlink(missing_ok=True)  # never through a hard link into the other generation
        (run / name).write_bytes(data)


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def give_up(*_: Any) -> None:
    raise Hang


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files of each new kind of finding")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance, coverage, findings, examples = random.Random(options.seed), Coverage(), Counter[str](), {}
    with tiny.folder() as folder:
        make_runs(folder)
        shutil.copytree(folder / "runs", folder / "runs-as-made")
        for command in COMMANDS:  # imports done, and every command is right on a whole run
            restore(folder)
            if problem := judge(folder, command, coverage):
                sys.exit(f"{command} on a whole run: {problem}")
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, give_up)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        corpus: list[dict[str, bytes]] = [{}]
        inputs, outcomes, begin, lines_at_start = 0, Counter[str](), time.monotonic(), len(coverage.lines)
        while time.monotonic() - begin < options.minutes * 60:
            restore(folder)
            run, seed = folder / "runs" / "victim", chance.choice(corpus)
            write(run, seed)
            changed = seed | mutated(run, chance)
            write(run, changed)
            if chance.random() < 0.05:
                trick(run, chance)
            coverage.new, inputs = False, inputs + 1
            for command in chance.sample(COMMANDS, 2):
                problem = judge(folder, command, coverage)
                outcomes["finding" if problem else "fine"] += 1
                if problem:
                    findings[f"{command}: {problem}"] += 1
                    if options.keep and problem not in examples:
                        write_all(options.keep / f"{len(examples)}", changed)
                    examples.setdefault(problem, [command, *changed])
            if coverage.new:
                corpus.append(changed)
    print(
        json.dumps(
            {
                "inputs": inputs,
                "executions": sum(outcomes.values()),
                "findings": dict(findings),
                "kept_for_new_lines": len(corpus) - 1,
                "lines_reached_whole": lines_at_start,
                "lines_reached": len(coverage.lines),
                "elapsed_s": round(time.monotonic() - begin, 1),
                **({"examples": examples} if examples else {}),
            },
            indent=1,
        )
    )
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
