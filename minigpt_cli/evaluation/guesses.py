"""What a model expected in places of a text, read as every score reads it."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from minigpt_cli.evaluation.scoring import Reader
from minigpt_cli.evaluation.windows import run_windows, windows_of


class Guesses(NamedTuple):
    """What a model expected in N places."""

    probabilities: npt.NDArray[np.float64]  # (N,) of the token that is there
    tokens: npt.NDArray[np.int64]  # (N, K) the most probable tokens, best first
    their_probabilities: npt.NDArray[np.float64]  # (N, K)


def guesses(reader: Reader, ids: npt.ArrayLike, wanted: npt.NDArray[np.int64], *, context: npt.ArrayLike | None, k: int) -> Guesses:
    """What the reader's model expected at the `wanted` indexes of `ids` (N,), ascending, read as `token_nats` reads them. The very
    first token of a text without context has probability 1 / V, and nothing was expected there (token -1)."""
    model, block_size = reader.model, reader.block_size
    before = np.asarray([] if context is None else context, dtype=np.int64)[-block_size:]
    tokens, at = np.concatenate([before, np.asarray(ids, dtype=np.int64)]), wanted + len(before)
    vocab_size = int(model.vocab_size)  # type: ignore[arg-type]
    k = min(k, vocab_size)
    found = Guesses(np.full(len(at), 1 / vocab_size), np.full((len(at), k), -1), np.zeros((len(at), k)))
    windows = (
        window
        for window in windows_of(len(tokens), len(before), block_size, reader.stride)
        if np.searchsorted(at, window.first_scored) < np.searchsorted(at, window.end)
    )
    with closing(run_windows(model, tokens, windows, block_size)) as run:  # an error must end inference mode too
        for batch, output, targets in run:
            for window, row, target in zip(batch, output.logits, targets, strict=True):
                here = slice(np.searchsorted(at, window.first_scored), np.searchsorted(at, window.end))
                places = torch.from_numpy(at[here] - window.start - 1).to(row.device)
                p = row[places].double().softmax(-1)  # (n, V)
                best = p.topk(k)
                found.probabilities[here] = p.gather(1, target[places][:, None])[:, 0].cpu().numpy()
                found.tokens[here], found.their_probabilities[here] = best.indices.cpu().numpy(), best.values.cpu().numpy()
    return found
