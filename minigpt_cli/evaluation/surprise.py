"""Which characters of a text surprised a model, and what it expected there instead.

A text is cut into cells, the fewest tokens that are whole characters: a character of a character tokenizer, a piece of a word of a BPE,
a letter in several byte tokens. The nats of a cell are those that `eval` counts. What the model expected in a cell is what it expected
in the place of its least probable token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minigpt_cli.evaluation.characters import begins_character
from minigpt_cli.evaluation.eval_target import Target
from minigpt_cli.evaluation.evaluate_run import ChooseDevice, Evaluation, dataset_of
from minigpt_cli.evaluation.scores import Score
from minigpt_cli.evaluation.statistics import largest_windows
from minigpt_cli.runstore.directory import Run
from minigpt_cli.tokenization.contract import Tokenizer, token_lengths

LENGTH = 32  # characters of a passage
GUESSES = 5
SHOWN = 10_000  # characters of the text itself


@dataclass(frozen=True)
class Cell:
    """Characters that the model reads at once."""

    text: str
    nats: float = 0.0  # of all of them
    token: str = ""  # the least probable of its tokens, as pieces_of writes it; "": this text is not scored
    probability: float = 1.0
    expected: tuple[tuple[str, float], ...] = ()  # the most probable tokens in its place; empty for the very first token

    @property
    def nats_per_char(self) -> float:
        return self.nats / max(1, len(self.text))


@dataclass(frozen=True)
class Surprising:
    """A passage that surprised the model."""

    start: int  # character of the scored text
    place: str  # "line 12", "document 3", "answer 3"
    nats_per_char: float
    cells: tuple[Cell, ...]

    @property
    def text(self) -> str:
        return "".join(cell.text for cell in self.cells)

    @property
    def peak(self) -> Cell:
        """The cell with its least probable token."""
        return min(self.cells, key=lambda cell: cell.probability)


@dataclass(frozen=True)
class Surprise:
    """How surprising a text is for a run: its most surprising passages, and its beginning."""

    passages: list[Surprising]  # most surprising first
    beginning: list[Cell]  # of the text, with what is read and not scored


@dataclass(frozen=True)
class _Cells:
    """Where the cells of the scored text are: of N cells, the first token and character of each, and the ends."""

    tokens: npt.NDArray[np.int64]  # (N + 1,) among the scored tokens that are text
    chars: npt.NDArray[np.int64]  # (N + 1,)


def surprise(found: Evaluation, target: Target, *, top: int = 0, shown: int = 0, device: ChooseDevice = lambda: "cpu") -> Surprise:
    """The `top` most surprising passages of a scored text, and its first `shown` characters. Raises UsageError if the run's data are
    missing."""
    from minigpt_cli import checkpoints
    from minigpt_cli.evaluation.guesses import guesses
    from minigpt_cli.evaluation.scoring import Reader, reading_of_split, reading_of_text
    from minigpt_cli.generation.streaming import pieces_of

    run: Run = found.run
    loaded, score = checkpoints.load(run, found.ckpt, device()), found.score
    tokenizer, block_size = loaded.tokenizer, loaded.config.model.block_size
    if target.text is not None:
        read = reading_of_text(tokenizer, target.text, in_parts=target.kind is not None)
    else:
        read = reading_of_split(tokenizer, dataset_of(run), target.split, block_size)
    ids = np.asarray(read.ids, dtype=np.int64)
    kept = np.arange(len(ids)) if read.parts is None else np.flatnonzero(read.parts.scored & ~read.parts.marks)
    cells, names = _cells_of(ids[kept], tokenizer, score), pieces_of(tokenizer.token_bytes())
    passages = _passages(score, cells, top)
    first = range(int(np.searchsorted(cells.chars[:-1], shown)))
    wanted = [i for start, stop, _ in passages for i in range(start, stop)] + list(first)
    tokens = np.unique(np.concatenate([np.arange(0), *(np.arange(cells.tokens[i], cells.tokens[i + 1]) for i in wanted)])).astype(np.int64)
    reader = Reader(loaded.model, tokenizer, block_size, target.stride)
    expected = guesses(reader, ids, kept[tokens], context=read.context, k=GUESSES)
    text = score.text.decode()

    def cell(i: int) -> Cell:
        a, b = cells.chars[i], cells.chars[i + 1]
        here = slice(*np.searchsorted(tokens, cells.tokens[i : i + 2]))
        at = here.start + int(expected.probabilities[here].argmin())
        guessed = zip(expected.tokens[at].tolist(), expected.their_probabilities[at].tolist(), strict=True)
        token = names[ids[kept[tokens[at]]]]
        likely = tuple((names[token], p) for token, p in guessed if token >= 0)
        return Cell(text[a:b], float(score.char_nats[a:b].sum()), token, float(expected.probabilities[at]), likely)

    return Surprise(
        [Surprising(int(cells.chars[a]), _place(score, text, cells, a, b), mean, tuple(map(cell, range(a, b)))) for a, b, mean in passages],
        _with_unscored([cell(i) for i in first], ids, kept[cells.tokens[: len(first)]], kept, tokenizer, shown),
    )


def _cells_of(tokens: npt.NDArray[np.int64], tokenizer: Tokenizer, score: Score) -> _Cells:
    """The cells of scored tokens that are text."""
    lengths = token_lengths(tokenizer.token_bytes())[tokens]
    begins = np.cumsum(lengths) - lengths
    starts_char = begins_character(score.text)  # (n_bytes,)
    n_chars = np.cumsum(starts_char)
    inside = np.minimum(begins, len(starts_char) - 1)
    first = np.flatnonzero((lengths > 0) & starts_char[inside])
    return _Cells(np.append(first, len(tokens)), np.append(n_chars[inside[first]] - 1, score.n_chars).astype(np.int64))


def _passages(score: Score, cells: _Cells, count: int) -> list[tuple[int, int, float]]:
    """The first and the last cell (exclusive) of the `count` most surprising passages, and their nats per character. A passage is inside
    one document or answer, that of its most surprising character."""
    length, found = min(LENGTH, score.n_chars), []
    borders = np.append(np.zeros(1, np.int64) if score.parts is None else score.parts.first, score.n_chars)
    for start in largest_windows(score.char_nats, length, count):
        part = int(np.searchsorted(borders, start + score.char_nats[start : start + length].argmax(), side="right"))
        a = int(np.searchsorted(cells.chars, max(start, int(borders[part - 1])), side="right")) - 1
        b = max(a + 1, int(np.searchsorted(cells.chars, min(start + length, int(borders[part])))))
        chars = slice(cells.chars[a], cells.chars[b])
        found.append((a, b, float(score.char_nats[chars].mean())))
    return sorted(found, key=lambda passage: -passage[2])


def _place(score: Score, text: str, cells: _Cells, first: int, last: int) -> str:
    """The place of a passage's most surprising cell: its line, or which of the documents or answers it is in."""
    at = max(range(first, last), key=lambda i: float(score.char_nats[cells.chars[i] : cells.chars[i + 1]].sum()))
    if score.parts is None:
        return f"line {text.count(chr(10), 0, int(cells.chars[at])) + 1:,}"
    kind = {"answers": "answer", "documents": "document"}[score.parts.kind]
    return f"{kind} {int(np.searchsorted(score.parts.first, cells.chars[at], side='right')):,}"


def _with_unscored(
    cells: Sequence[Cell],
    ids: npt.NDArray[np.int64],
    begins: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
    tokenizer: Tokenizer,
    limit: int,
) -> list[Cell]:
    """The cells with the text between them that is read and not scored, about `limit` characters in all. A cell of the first begins at
    each of `begins`; `kept` are the tokens of all cells."""
    scored = np.zeros(len(ids), dtype=np.bool_)
    scored[kept] = True
    found: list[Cell] = []
    after, size = 0, 0
    for cell, begin in zip(cells, begins.tolist(), strict=True):
        between = ids[after:begin][~scored[after:begin]]
        if len(between):
            found.append(Cell(tokenizer.decode(between[:limit])))
            size += len(found[-1].text)
        if size >= limit:
            break
        found.append(cell)
        after, size = begin, size + len(cell.text)
    return found
