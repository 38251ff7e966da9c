"""SIGKILL real processes at random moments and in random system calls, go on, and compare the end, bit for bit, with what was left alone.

    python tests/benchmarks/kill_loop.py --rounds 500 [--seed 0] [--arch modern] [--kind train compiled sweep search command]

A round is one kill. Recipes are drawn at random from the product of all that is promised to be exact; each is run once undisturbed, then
killed and resumed as a person would until it ends. Weights, optimizer, generators, metrics, configuration and record must then be equal
(the runs of a search: each to one of the same configuration), a save that was announced must never be lost, and every session must call
itself exact. A kind "command" kills the other commands that write, and looks whether the store is whole. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import tiny
from harness.kills import SHARES, Loop
from harness.recipes import ARCHITECTURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arch", choices=ARCHITECTURES, help="of every recipe; default: all")
    parser.add_argument("--kind", choices=SHARES, nargs="+", default=list(SHARES), help="kinds of recipes; default: all")
    parser.add_argument("--first", type=int, default=0, help="the number of the first recipe: to repeat one")
    parser.add_argument("--keep", type=Path, help="a folder for the runs that differ")
    parser.add_argument("--hangs-s", type=float, default=300.0, help="seconds after which a command hangs; more on a machine that is busy")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the figures so far are printed
    with tiny.folder() as folder:
        loop, begin, said = Loop(folder, options.rounds, options.kind, options.keep), time.monotonic(), 0.0
        loop.hangs_s, number = options.hangs_s, options.first
        try:
            loop.prepare()
            while loop.kills < options.rounds:
                loop.one(random.Random(f"{options.seed} {number}"), number, options.arch)
                number += 1
                if time.monotonic() - said > 60:
                    said = time.monotonic()
                    print(json.dumps(figures(loop, begin)), file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            loop.stop()
    print(json.dumps(figures(loop, begin) | {"findings": loop.findings}))
    sys.exit(1 if loop.findings else 0)


def figures(loop: Loop, begin: float) -> dict[str, object]:
    return {
        "rounds": loop.kills,
        "recipes": loop.recipes,
        "runs_compared": loop.ends,
        "kills_in_a_call": loop.kills_in_a_call,
        "kills_before_the_first_save": loop.kills_before_a_save,
        "fallbacks_to_the_save_before": loop.fallbacks,
        "kills_by_feature": dict(Counter(loop.features).most_common()),
        "refused": dict(loop.refused),
        "differences": len(loop.findings),
        "elapsed_s": round(time.monotonic() - begin, 1),
    }


if __name__ == "__main__":
    main()
