"""What fast decoding costs in nats per token on a real text, as JSON.

    python tests/benchmarks/decoding_quality.py RUNS_DIR RUN... --text FILE

- `inside`: consecutive windows of the block size, as `minigpt eval` scores them: float32 weights against integers of 16 and 8 bits.
- `beyond`: a text much longer than the block read in one go, scored after its first block: by the sliding window (rotary
  positions), or by starting anew with the newest half of the window (learned positions; for rotary ones as a comparison).
  Beside it what a full window costs: every token seen with as many before it as fit, the context that nanoGPT recomputes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_cli.generation.decoders.c import NativeDecoder
from minigpt_cli.generation.decoders.weights import DecoderWeights
from minigpt_cli.generation.engine import KEPT_OF_WINDOW
from minigpt_cli.generation.open_run import open_model
from minigpt_cli.generation.sampling import nats
from minigpt_cli.runstore.store import RunStore

ROWS = 64


def inside(weights: DecoderWeights, ids: np.ndarray, bits: int) -> np.ndarray:
    """Nats of all tokens but the first of each window."""
    decoder, block = NativeDecoder(weights, ROWS, bits=bits), weights.block_size
    windows = ids[: len(ids) // block * block].reshape(-1, block)
    found = []
    for at in range(0, len(windows), ROWS):
        some = windows[at : at + ROWS]
        slots = list(range(len(some)))
        for i in range(block - 1):
            found.append(nats(decoder.step(some[:, i].tolist(), slots, [i] * len(some)), some[:, i + 1]))
    return np.concatenate(found)


def beyond(weights: DecoderWeights, ids: np.ndarray, way: str) -> np.ndarray:
    """Nats of the tokens after the first block of each of ROWS long texts."""
    decoder, block = NativeDecoder(weights, ROWS, bits=32), weights.block_size
    texts = ids[: len(ids) // ROWS * ROWS].reshape(ROWS, -1)
    slots, found = list(range(ROWS)), []
    for positions, i in _schedule(texts, decoder, way, block):
        logits = decoder.step(texts[:, i].tolist(), slots, [positions] * ROWS)
        if i >= block:
            found.append(nats(logits, texts[:, i + 1]))
    return np.concatenate(found)


def _schedule(texts: np.ndarray, decoder: NativeDecoder, way: str, block: int) -> Iterator[tuple[int, int]]:
    """(position, index) of each step; starting anew in between where `way` says so."""
    position = 0
    for i in range(texts.shape[1] - 1):
        if way != "slide" and position == block:
            position = block - 1 if way == "full" else int(block * KEPT_OF_WINDOW) - 1
            for row in range(ROWS):
                decoder.extend(row, texts[row, i - position : i].tolist(), 0)
        yield position, i
        position += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs_dir", type=Path)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--from-frac", type=float, default=0.9, help="use the text from here on: the validation split")
    parser.add_argument("--beyond-chars", type=int, default=64 * 1000)
    options = parser.parse_args()
    text = options.text.read_text("utf-8")
    text = text[int(len(text) * options.from_frac) :]
    report: dict[str, Any] = {}
    for name in options.runs:
        writer = open_model(RunStore(options.runs_dir).find(name), engine="native")
        weights = writer.model
        assert isinstance(weights, DecoderWeights)
        ids = np.asarray(writer.tokenizer.encode(text), np.int64)
        exact = inside(weights, ids, 32)
        rows: dict[str, Any] = {
            "arch": weights.config.arch,
            "block": weights.block_size,
            "inside_float32": exact.mean(),
        }
        for bits in (16, 8):
            rounded = inside(weights, ids, bits)
            rows[f"inside_int{bits}"] = rounded.mean()
            rows[f"difference_int{bits}"] = rounded.mean() - exact.mean()
            rows[f"largest_difference_of_a_token_int{bits}"] = np.abs(rounded - exact).max()
        ways = ("slide", "anew", "full") if weights.rope_theta else ("anew", "full")
        rows |= {f"beyond_{way}": beyond(weights, ids[: options.beyond_chars], way).mean() for way in ways}
        report[name] = {key: round(value, 7) if isinstance(value, float) else value for key, value in rows.items()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
