"""Does the time of an answer tell how much of an API key is right? Figures as JSON.

    python tests/benchmarks/key_timing.py --rounds 200000

Guesses that share 0, 1, 8, 32 and 63 leading characters with a key of 64, and some of other lengths, go through the server's guard in a
shuffled order. For each the median time is given, and by how much it differs from the guess that shares nothing: 95 % interval by
bootstrap over blocks of rounds. Last the same with a comparison that stops at the first wrong character: the method has to find that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minigpt_cli.generation.serving.guard import Guard

KEY = "kQ7v" * 16
SHARED = (0, 1, 8, 32, 63)
BLOCKS = 50


def guesses() -> dict[str, bytes]:
    """Wrong keys by what they share with the right one."""
    wrong = {f"{n} of 64 right": KEY[:n] + "#" * (64 - n) for n in SHARED}
    return {name: guess.encode() for name, guess in {**wrong, "same length, again": "#" * 64, "1 long": "#", "63 long": KEY[:63]}.items()}


def through_the_guard() -> Callable[[bytes], int]:
    """Nanoseconds that the guard takes to refuse a key."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("a wrong key passed")

    async def send(message: Any) -> None:
        pass

    guard = Guard(app, api_key=KEY, any_host=True)

    def measure(guess: bytes) -> int:
        scope = {"type": "http", "path": "/v1/models", "headers": [(b"host", b"h"), (b"authorization", b"Bearer " + guess)]}
        refusing = guard(scope, None, send)
        began = time.perf_counter_ns()
        try:
            refusing.send(None)
        except StopIteration:
            return time.perf_counter_ns() - began
        raise AssertionError("the guard waited")

    return measure


def leaky(guess: bytes) -> int:
    """Nanoseconds of a comparison that stops at the first wrong character, beside about as much other work as the guard has."""
    began = time.perf_counter_ns()
    sum(range(400))
    for one, other in zip(guess, KEY.encode(), strict=False):
        if one != other:
            break
    return time.perf_counter_ns() - began


def timed(measure: Callable[[bytes], int], rounds: int) -> dict[str, Any]:
    """Median nanoseconds of each guess, and the difference from the first with its interval."""
    wrong, order = guesses(), random.Random(0)
    names = list(wrong)
    found = np.empty((rounds, len(names)))
    for row in found:
        for column in order.sample(range(len(names)), len(names)):
            row[column] = measure(wrong[names[column]])
    medians = np.median(found.reshape(BLOCKS, -1, len(names)), axis=1)  # (blocks, guesses)
    deltas = medians - medians[:, :1]
    picks = np.random.default_rng(0).integers(BLOCKS, size=(2000, BLOCKS))
    low, high = np.percentile(deltas[picks].mean(axis=1), [2.5, 97.5], axis=0)
    return {
        name: {"median_ns": float(np.median(found[:, i])), "more_ns": float(deltas[:, i].mean()), "ci95": [float(low[i]), float(high[i])]}
        for i, name in enumerate(names)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100_000)
    rounds = parser.parse_args().rounds // BLOCKS * BLOCKS
    asyncio.set_event_loop(asyncio.new_event_loop())
    report = {"guard": timed(through_the_guard(), rounds), "leaky": timed(leaky, rounds), "rounds": rounds, "load": os.getloadavg()}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
