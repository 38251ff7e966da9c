"""The beginning of a validation text, cut into windows: the sample that `runs look` measures on. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import context_of, parts_of
from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation.characters import begins_character, per_character
from minigpt_cli.evaluation.comparison import KINDS, character_kinds
from minigpt_cli.evaluation.scores import PartsScored, Score, make_score
from minigpt_cli.tokenization.contract import token_lengths

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CHARACTERS = 16_384
OTHER = len(KINDS)  # the kind of tokens that are no characters


@dataclass(frozen=True)
class Sample:
    """N consecutive windows of T tokens. `stream` has the token before the first of them too, so that all N * T are predicted."""

    stream: Ints  # (N * T + 1,)
    window: int  # T
    before: Ints  # at most T tokens before the stream
    is_text: npt.NDArray[np.bool_]  # (N * T,) predicted tokens that are characters; of conversations, those of answers
    n_bytes: Ints  # (N * T,) of each predicted token
    text: bytes  # of the predicted tokens that are text
    parts: PartsScored | None

    @property
    def rows(self) -> Ints:
        """(N, T + 1): inputs and, one to the right, what they are to predict."""
        return np.lib.stride_tricks.sliding_window_view(self.stream, self.window + 1)[:: self.window]

    def per_character(self, nats: Floats) -> Floats:
        """Nats of each character, (n_chars,), from those of each predicted token, (N * T,)."""
        return per_character(nats[self.is_text], self.n_bytes[self.is_text], self.text)[0]

    @property
    def _begun_by(self) -> Ints:
        """The predicted token that begins each character, (n_chars,)."""
        zeros = np.zeros(int(self.is_text.sum()))
        return np.asarray(np.flatnonzero(self.is_text)[per_character(zeros, self.n_bytes[self.is_text], self.text)[1]])

    def score(self, nats: Floats) -> Score:
        """The score of the sample from the nats of each predicted token, (N * T,)."""
        position = self._begun_by % self.window + 1
        return make_score(nats[self.is_text], self.per_character(nats), position, self.text, parts=self.parts)

    def token_kinds(self) -> npt.NDArray[np.int8]:
        """The kind of the first character of each predicted token, (N * T,), as an index into KINDS; OTHER for what is no text."""
        kinds = character_kinds(self.text.decode(), None if self.parts is None else self.parts.first)
        begun_by, found = self._begun_by, np.full(len(self.is_text), OTHER, dtype=np.int8)
        found[begun_by[::-1]] = kinds[::-1]
        return found


def sample_of(dataset: Dataset, block_size: int, characters: int = CHARACTERS) -> Sample:
    """The first `characters` characters of the validation split in whole windows. Raises UsageError if there is no text in it."""
    pieces = dataset.tokenizer.token_bytes()
    tokens = np.asarray(dataset.split("val").tokens[: 8 * characters], dtype=np.int64)
    parts = parts_of(tokens, dataset.tokenizer, documents=dataset.in_documents)
    is_text = np.ones(len(tokens), np.bool_) if parts is None else parts.scored & ~parts.marks
    begins = np.array([begins_character(piece).sum() for piece in pieces])  # characters that each id begins
    n = int(np.searchsorted(np.cumsum(begins[tokens] * is_text), characters, side="right"))
    window = max(1, min(block_size, n))
    n = n // window * window
    tokens, is_text = tokens[:n], is_text[:n].copy()
    text = _whole_text(tokens, is_text, pieces)
    if not text:
        raise UsageError("the validation split holds no text to look at")
    context = np.asarray(context_of(dataset, "val", block_size), dtype=np.int64)
    if not len(context):  # nothing comes before the text: its last token takes that place
        context = tokens[-1:]
    n_bytes = token_lengths(pieces)[tokens]
    scored = None
    if parts is not None:
        kept = np.flatnonzero(is_text)
        begun_by = per_character(np.zeros(len(kept)), n_bytes[kept], text)[1]
        starts = np.searchsorted(kept, parts.starts[parts.starts < n])
        first = np.searchsorted(begun_by, starts[starts < len(kept)])
        scored = PartsScored(parts.kind, np.unique(first).astype(np.int64))
    return Sample(np.concatenate([context[-1:], tokens]), window, context[:-1][-window:], is_text, n_bytes, text, scored)


def _whole_text(tokens: Ints, is_text: npt.NDArray[np.bool_], pieces: list[bytes]) -> bytes:
    """The bytes of the tokens that are text. Where the last ends inside a character, the tokens of this character no longer count."""
    while True:
        text = b"".join(pieces[i] for i in tokens[is_text].tolist())
        try:
            text.decode()
        except UnicodeDecodeError:
            is_text[np.flatnonzero(is_text)[-1]] = False
        else:
            return text
