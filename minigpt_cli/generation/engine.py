"""Decoding: every step of the engine adds one token to each running sequence.

A request is one prompt and how to continue it, `num_samples` times. The prompt runs through the model once; its keys and
values are copied for the other samples. Sample i has its own generator, seeded with (seed, i), and draws one number for each
token: its text depends neither on the number of samples nor on what else is decoded.
Sequences join and leave between steps (continuous batching: Yu et al. 2022, "Orca"), so that a server keeps one engine.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from minigpt_cli.errors import UsageError
from minigpt_cli.generation.decoders.contract import Decoder
from minigpt_cli.generation.sampling import Sampling, nats, probabilities
from minigpt_cli.generation.streaming import TextStream

StopReason = Literal["length", "stop", "eot", "time"]
"""All tokens were made; a stop string came; the text, a document or an answer, ended by itself; the time was over."""

BALANCED = Sampling()
KEPT_OF_WINDOW = 0.5  # what a model of learned positions keeps when its window is full


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to continue it."""

    ids: Sequence[int]
    sampling: Sampling = BALANCED
    max_new_tokens: int = 256
    num_samples: int = 1
    seed: int = 0
    stop: Sequence[str] = ()
    ends: Sequence[str] = ()  # what ends a text by itself, such as the text of the end-of-text token
    max_time_s: float = 0.0  # from the first token on; 0: no limit
    alternatives: int = 0  # most probable tokens to report with every step
    score: bool = False  # report nats of every token
    score_prompt: bool = False  # and, with a sample's first step, those of the prompt's tokens

    @property
    def needs_scores(self) -> bool:
        return self.score or self.score_prompt or self.alternatives > 0


class Scored(NamedTuple):
    """A token of the prompt, with the fields that Step has; the first token follows nothing and has no nats."""

    token: int
    nats: float | None
    alternatives: tuple[tuple[int, float], ...]


class Step(NamedTuple):
    """One token of one sample. A sample's last step has a stop_reason."""

    sample: int
    token: int
    text: str  # text that became certain with this token
    nats: float | None = None  # under the model itself, before temperature and the like
    alternatives: tuple[tuple[int, float], ...] = ()  # (token, probability) under the model itself, most probable first
    stop_reason: StopReason | None = None
    request: int = 0
    prompt: tuple[Scored, ...] = ()  # the prompt's tokens, if the request asks for them


@dataclass
class _Sequence:
    request: GenerationRequest
    number: int
    sample: int
    generator: Random
    text: TextStream | None
    tokens: list[int]  # of the prompt and the continuation
    slot: int = -1
    position: int = 0  # tokens in the slot
    made: int = 0
    deadline: float = math.inf  # by time.perf_counter
    seen: npt.NDArray[np.bool_] | None = field(default=None, repr=False)

    def stop_reason(self) -> StopReason | None:
        """Why the text ends here, if it does."""
        if self.text is not None and self.text.stopped is not None:
            return "eot" if self.text.stopped in self.request.ends else "stop"
        if self.made >= self.request.max_new_tokens:
            return "length"
        return "time" if time.perf_counter() >= self.deadline else None


class Engine:
    """Drives a decoder for any number of requests. Not thread-safe: one thread submits and steps."""

    def __init__(self, decoder: Decoder, token_bytes: Sequence[bytes] | None = None, end_of_text: int | None = None) -> None:
        """`end_of_text`: of a run trained with --document-mask, the token after which nothing before it is seen."""
        self.decoder = decoder
        self.token_bytes = token_bytes
        self._end_of_text = end_of_text
        self._free = list(range(decoder.slots))[::-1]
        self._running: list[_Sequence] = []
        self._waiting: deque[list[_Sequence]] = deque()  # for each request, its samples without a slot
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether a sequence is running or waiting."""
        return bool(self._running or self._waiting)

    @property
    def waiting(self) -> int:
        """Sequences that have no slot yet."""
        return sum(len(group) for group in self._waiting)

    @property
    def running(self) -> int:
        """Sequences that the next step adds a token to."""
        return len(self._running)

    def submit(self, request: GenerationRequest) -> int:
        """The number of this request, which its steps carry. Raises UsageError if it cannot be decoded."""
        if not len(request.ids):
            raise UsageError("the prompt has no tokens: give at least one character")
        if min(request.ids) < 0 or max(request.ids) >= self.decoder.vocab_size:
            raise UsageError(f"the prompt has a token outside of the run's vocabulary of {self.decoder.vocab_size}")
        if request.max_new_tokens < 1 or request.num_samples < 1:
            raise UsageError("--max-new-tokens and --num-samples must be at least 1")
        self._count += 1
        self._waiting.append([self._sequence(request, sample) for sample in range(request.num_samples)][::-1])
        return self._count

    def cancel(self, number: int) -> None:
        """Drop every sample of a request and free its slots."""
        for sequence in [s for s in self._running if s.number == number]:
            self._release(sequence)
        self._waiting = deque(group for group in self._waiting if group[0].number != number)

    def step(self) -> list[Step]:
        """Give free slots to waiting sequences, then add one token to every running sequence."""
        steps = self._admit()
        if not self._running:
            return steps
        restarting = [s for s in self._running if self._restarts(s)]
        moving = [s for s in self._running if not self._restarts(s)] if restarting else list(self._running)
        if moving:
            logits = self.decoder.step([s.tokens[-1] for s in moving], [s.slot for s in moving], [s.position for s in moving])
            for sequence in moving:
                sequence.position += 1
            steps += self._advance(moving, logits)
        for sequence in restarting:
            kept = self._context(sequence.tokens, max(1, int(self.decoder.window * KEPT_OF_WINDOW)))
            steps += self._advance([sequence], self.decoder.extend(sequence.slot, kept, 0)[None])
            sequence.position = len(kept)
        return steps

    def _restarts(self, sequence: _Sequence) -> bool:
        """Whether the next token is the first of a new context: a document has ended, or all learned positions are used."""
        is_full = not self.decoder.endless and sequence.position >= self.decoder.window
        return is_full or sequence.tokens[-1] == self._end_of_text

    def _context(self, tokens: Sequence[int], most: int) -> list[int]:
        """The newest tokens, at most so many, that the next one may see."""
        context = list(tokens[-most:])
        ends = [at for at, token in enumerate(context) if token == self._end_of_text]
        return context[ends[-1] :] if ends else context

    def _sequence(self, request: GenerationRequest, sample: int) -> _Sequence:
        text = TextStream(self.token_bytes, (*request.ends, *request.stop)) if self.token_bytes is not None else None
        seen = None
        if request.sampling.repetition_penalty != 1:
            seen = np.zeros(self.decoder.vocab_size, dtype=bool)
            seen[np.asarray(request.ids)] = True
        return _Sequence(request, self._count, sample, Random(f"{request.seed}/{sample}"), text, list(request.ids), seen=seen)

    def _admit(self) -> list[Step]:
        """Give free slots to waiting samples. A prompt is read once, then copied."""
        steps: list[Step] = []
        while self._free and self._waiting:
            group = self._waiting[0]
            admitted = [group.pop() for _ in range(min(len(group), len(self._free)))]
            if not group:
                self._waiting.popleft()
            for sequence in admitted:
                sequence.slot = self._free.pop()
                if sequence.request.max_time_s:
                    sequence.deadline = time.perf_counter() + sequence.request.max_time_s
            context = self._context(admitted[0].request.ids, self.decoder.window)
            prompt = self._score_prompt(admitted[0], context) if admitted[0].request.score_prompt else ()
            logits = self.decoder.extend(admitted[0].slot, context, 0)
            for sequence in admitted:
                self.decoder.copy(admitted[0].slot, sequence.slot, len(context))
                sequence.position = len(context)
            self._running += admitted
            steps += [step._replace(prompt=prompt) for step in self._advance(admitted, np.repeat(logits[None], len(admitted), 0))]
        return steps

    def _score_prompt(self, sequence: _Sequence, context: list[int]) -> tuple[Scored, ...]:
        """The score of each token of the prompt, read one by one; tokens before the window have none."""
        ids, count = sequence.request.ids, sequence.request.alternatives
        scored = [Scored(int(token), None, ()) for token in ids[: len(ids) - len(context) + 1]]
        for at, (token, following) in enumerate(pairwise(context)):
            logits = self.decoder.extend(sequence.slot, [token], at)
            cost = float(nats(logits[None], np.array([following]))[0])
            scored.append(Scored(int(following), cost, most_probable(logits, count)))
        return tuple(scored)

    def _advance(self, sequences: list[_Sequence], logits: npt.NDArray[Any]) -> list[Step]:
        """Choose the next token of each of `sequences` from its row of logits (R, V)."""
        ids = self._choose(sequences, logits)
        return [self._take(sequence, int(token), row) for sequence, token, row in zip(sequences, ids, logits, strict=True)]

    def _choose(self, sequences: list[_Sequence], logits: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        uniforms = np.array([s.generator.random() for s in sequences])
        first = sequences[0].request.sampling
        if all(s.request.sampling is first for s in sequences):
            return self._choose_with(first, sequences, logits, uniforms)
        ids = np.empty(len(sequences), np.intp)
        for sampling in {s.request.sampling for s in sequences}:
            rows = [i for i, s in enumerate(sequences) if s.request.sampling == sampling]
            ids[rows] = self._choose_with(sampling, [sequences[i] for i in rows], logits[rows], uniforms[rows])
        return ids

    def _choose_with(
        self, sampling: Sampling, sequences: list[_Sequence], logits: npt.NDArray[Any], uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.intp]:
        """The chosen ids. A greedy choice that rounding could change is made again from exact logits, if all tokens are in the window."""
        marks = [s.seen for s in sequences if s.seen is not None]
        seen = np.stack(marks) if marks else None
        ids, margins = self.decoder.choose(logits, sampling, uniforms, seen)
        if sampling.temperature > 0 or not self.decoder.greedy_slack:
            return ids
        narrow = np.flatnonzero(margins < self.decoder.greedy_slack * np.abs(logits).max(axis=-1))
        ids = ids.copy() if len(narrow) else ids  # the decoder uses its array again at the next call
        for row in narrow:
            sequence = sequences[row]
            if len(sequence.tokens) <= self.decoder.window:
                exact, at = self.decoder.exact(self._context(sequence.tokens, self.decoder.window))[None], slice(row, row + 1)
                ids[row] = self.decoder.choose(exact, sampling, uniforms[at], None if seen is None else seen[at])[0][0]
        return ids

    def _take(self, sequence: _Sequence, token: int, logits: npt.NDArray[Any]) -> Step:
        request = sequence.request
        sequence.tokens.append(token)
        sequence.made += 1
        if sequence.seen is not None:
            sequence.seen[token] = True
        cost = float(nats(logits[None], np.array([token]))[0]) if request.needs_scores else None
        alternatives = most_probable(logits, request.alternatives) if request.alternatives else ()
        text = sequence.text.push(token) if sequence.text is not None else ""
        reason = sequence.stop_reason()
        if reason in ("length", "time") and sequence.text is not None:
            text += sequence.text.finish()
            reason = sequence.stop_reason()  # an incomplete character may be a stop string
        if reason is not None:
            self._release(sequence)
        return Step(sequence.sample, token, text, cost, alternatives, reason, sequence.number)

    def _release(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._free.append(sequence.slot)


def most_probable(logits: npt.NDArray[Any], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` most probable tokens of logits (V,) and their probabilities under the model itself."""
    p = probabilities(logits.astype(np.float64))
    return tuple((int(i), float(p[i])) for i in np.argsort(-p, kind="stable")[:count])
