"""The process that runs the learner's file, with bounds: no network, no other programs, two gigabytes; the one that started it has a clock.

    python -P -m minigpt_cli.course.workshop.runner FILE

It answers lines of JSON on stdin with one on stdout each, after the first, {"ready": true}, when torch is loaded:
    ["check", N]               {"state", "message", "printed"} of blank N
    ["write", RUN, N, [ID…]]   {"text", "tokens", "gaps"} of N tokens that the file writes with a run, after these
A file that cannot be run is answered by {"broken": message}.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import torch

from minigpt_cli.course.workshop import check_guesses, check_layers
from minigpt_cli.course.workshop.blanks import BLANKS
from minigpt_cli.course.workshop.judging import Wrong, undisturbed
from minigpt_cli.storage.atomic_io import one_line

MEMORY = 2 << 30  # bytes more than Python and torch take
_FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile")


class _Printed(io.StringIO):
    """What the learner's file prints, as far as it can be shown."""

    def write(self, text: str) -> int:
        if self.tell() < 1000:
            super().write(text[:1000])
        return len(text)


def main(path: str) -> None:
    out, printed, tasks = _answers(), _Printed(), sys.stdin
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), printed, printed
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)

    def tell(**result: Any) -> None:
        out.write(json.dumps(result) + "\n")
        out.flush()

    _set_bounds()
    tell(ready=True)
    module = None
    for line in tasks:
        task, *what = json.loads(line)
        try:
            module = module or _opened(Path(path))
            answer = _checked(module, what[0], path) if task == "check" else _written(module, *what)
        except BaseException as error:  # also SystemExit and KeyboardInterrupt, which the file may raise itself
            answer = {"broken": _explained(error, path)}
        tell(**answer, printed=printed.getvalue())
        printed.seek(0)
        printed.truncate()


def _answers() -> TextIO:
    """A stream to where stdout went. Whatever else writes to stdout, such as sys.__stdout__, writes to nowhere."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return answers


def _set_bounds() -> None:
    def refuse(event: str, _: Any) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError("my_gpt.py may not use the network or start programs here")

    sys.addaudithook(refuse)
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _opened(path: Path) -> ModuleType:
    """The learner's file as a module. Raises whatever it raises."""
    spec = importlib.util.spec_from_file_location("my_gpt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_gpt"] = module
    spec.loader.exec_module(module)
    return module


def _checked(module: ModuleType, number: int, path: str) -> dict[str, str]:
    """Whether a blank is "right", "empty" or "wrong", and the message."""
    name = BLANKS[number - 1].function
    if (function := getattr(module, name, None)) is None:
        return {"state": "wrong", "message": f"there is no function {name}: the checks call it by this name"}
    check = getattr(check_layers, f"check_{name}", None) or getattr(check_guesses, f"check_{name}")
    try:
        check(undisturbed(function))
    except NotImplementedError:
        return {"state": "empty", "message": ""}
    except Wrong as error:
        return {"state": "wrong", "message": str(error)}
    except BaseException as error:
        return {"state": "wrong", "message": _explained(error, path)}
    return {"state": "right", "message": ""}


def _written(module: ModuleType, run: str, n: int, ids: list[int]) -> dict[str, Any]:
    """What the learner's file writes, and for each token how far the best logit was above the second, as a share of the largest."""
    gaps: list[float] = []
    choose = module.probabilities

    def watched(logits: Any, *settings: Any) -> Any:
        first, second = logits.topk(2).values.tolist()
        gaps.append((first - second) / max(float(logits.abs().max()), 1e-30))
        return choose(logits, *settings)

    weights, config, tokenizer = module.load(run)
    vars(module)["probabilities"] = watched
    tokens = module.write(weights, config, ids, n)
    return {"text": str(tokenizer.decode(tokens)), "tokens": [int(token) for token in tokens], "gaps": gaps}


def _explained(error: BaseException, path: str) -> str:
    """An error of the learner's file in one line, with the line where it happened."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return f"it asked for more than {MEMORY >> 30} GB of memory"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if os.path.realpath(frame.filename) == os.path.realpath(path)
    ]
    where = f"line {lines[-1]}: " if lines else ""
    what = one_line(str(error).partition("\n")[0], 200)
    return f"{where}{type(error).__name__}{f': {what}' if what else ''}"


if __name__ == "__main__":
    main(sys.argv[1])
