"""Processes that type random commands in one runs directory, and now and then kill one another; nobody may ever see anything broken.

    python tests/benchmarks/random_commands.py --minutes 60 [--processes 10] [--seed 0]

All six commands: trainings, resumes, sweeps, adapters, tokenizing, scores, comparisons, pages, tags, notes, renames, removals, exports
and imports. Wrong are: a traceback, an exit code that is not promised, a failure that is not one line, a hang, a broken record that
a reader sees, a tag that was set and is gone, a note that nobody wrote, and, at the end, a run that does not verify, a page or
export that is cut off, a temporary file of a process that is gone. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import tiny
from harness.crowd import Crowd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the store as it is at the end")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the figures so far are printed
    with tiny.folder() as folder:
        crowd = Crowd(folder, options.seed)
        crowd.work(options.minutes * 60, options.processes)
        crowd.check()
        if options.keep:
            crowd.keep(options.keep)
    print(json.dumps(crowd.figures()))
    sys.exit(1 if crowd.findings else 0)


if __name__ == "__main__":
    main()
