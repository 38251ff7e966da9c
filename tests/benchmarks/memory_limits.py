"""Training near a limit of memory: each ends trained, or in one line that says what to do; killed or with a traceback it has failed.

python tests/benchmarks/memory_limits.py TEXT            # limits of addresses, as of `ulimit -v`
python tests/benchmarks/memory_limits.py TEXT --group    # of a control group of version 1, made and removed here (as root)
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ADDRESSES = (1000, 1200, 1400, 1700, 2000, 2300)  # MB; torch alone maps 800
GROUP = (300, 360, 400, 450, 500, 700, 1200)  # MB; torch alone holds 270
SHAPE = "--preset tiny-run --n-embd 128 --n-head 4 --block-size 128 --batch-size 64 --max-steps 2 --threads 1 --attention plain"
GROUPS = Path("/sys/fs/cgroup/memory")


def train(text: str, folder: str, auto_batch: bool, begin: Callable[[], None]) -> tuple[int, str]:
    """Exit code and last line of a training that calls `begin` first."""
    command = [sys.executable, "-m", "minigpt_cli", "train", text, *SHAPE.split(), "--runs-dir", folder, *["--auto-batch"] * auto_batch]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=begin)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return done.returncode, _verdict(lines)


def _verdict(lines: list[str]) -> str:
    """The last line, marked where it ends a traceback."""
    last = lines[-1] if lines else ""
    return f"Traceback: {last}" if any(line.startswith("Traceback") for line in lines) else last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--group", action="store_true")
    asked = parser.parse_args()
    group, failed = GROUPS / "minigpt-memory-limits", 0
    if asked.group:
        group.mkdir(exist_ok=True)
    for megabytes in GROUP if asked.group else ADDRESSES:
        n_bytes = megabytes << 20

        def begin(n_bytes: int = n_bytes) -> None:
            if asked.group:
                (group / "memory.limit_in_bytes").write_text(str(n_bytes))
                (group / "cgroup.procs").write_text("0")
            else:
                resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))

        for auto_batch in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                code, line = train(asked.text, folder, auto_batch, begin)
            bad = code < 0 or line.startswith("Traceback")
            failed += bad
            print(f"{megabytes:5} MB{' --auto-batch' * auto_batch:13} {'FAILED' if bad else 'ok'}  exit {code}: {line[:120]}", flush=True)
    if asked.group:
        group.rmdir()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
