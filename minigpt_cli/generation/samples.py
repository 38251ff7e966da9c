"""From a prompt to its ids, and from the steps of a request to complete samples."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt_cli.errors import UsageError
from minigpt_cli.generation.engine import Engine, GenerationRequest, Step


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of `prompt`; an empty one becomes a line break, or the first token if there is none. Raises UsageError for unknown characters."""
    if "\N{REPLACEMENT CHARACTER}" not in prompt and any(0xD800 <= ord(c) < 0xE000 for c in prompt):
        raise UsageError("the prompt is not valid UTF-8: give it in UTF-8")
    if prompt:
        return [int(i) for i in tokenizer.encode(prompt)]
    try:
        return [int(i) for i in tokenizer.encode("\n")]
    except UsageError:
        return [0]


@dataclass
class Sample:
    """One continuation, complete or growing."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)  # of each token, under the model itself
    alternatives: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    stop_reason: str | None = None

    @property
    def nats_per_token(self) -> float | None:
        """Mean over the tokens that were scored."""
        return sum(self.nats) / len(self.nats) if self.nats else None

    @property
    def nats_per_char(self) -> float | None:
        """The sum of all tokens' nats divided by the characters of the text."""
        return sum(self.nats) / len(self.text) if self.nats and self.text else None

    def add(self, step: Step) -> None:
        """Add one step."""
        self.text += step.text
        self.tokens.append(step.token)
        if step.nats is not None:
            self.nats.append(step.nats)
        if step.alternatives:
            self.alternatives.append(step.alternatives)
        self.stop_reason = step.stop_reason


@dataclass
class Stopwatch:
    """Tokens and seconds of one decoding."""

    tokens: int = 0
    elapsed_s: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else None


def run(engine: Engine, request: GenerationRequest, watch: Stopwatch | None = None) -> Generator[Step]:
    """Every step of one request; if the reader stops early, its slots are free again. `watch` counts the time of decoding alone."""
    number = engine.submit(request)
    try:
        while engine.busy:
            began = time.perf_counter()
            steps = engine.step()
            if watch is not None:
                watch.elapsed_s += time.perf_counter() - began
                watch.tokens += len(steps)
            yield from steps
    finally:
        engine.cancel(number)


def collect(steps: Iterable[Step], count: int) -> list[Sample]:
    """The `count` samples of `steps`."""
    samples = [Sample() for _ in range(count)]
    for step in steps:
        samples[step.sample].add(step)
    return samples


def distinct(text: str, n: int) -> float:
    """The share of different n-grams among all n-grams of words (Li et al. 2016); 1: no repetition, or no n-gram."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def in_order(steps: Iterable[Step], count: int) -> Iterator[tuple[int, Step]]:
    """Steps sample by sample: sample 0 streams, and each other one follows when the one before it is complete."""
    held: list[list[Step]] = [[] for _ in range(count)]
    current = 0
    for step in steps:
        held[step.sample].append(step)
        while current < count:
            done = False
            for ready in held[current]:
                yield current, ready
                done = ready.stop_reason is not None
            held[current] = []
            if not done:
                break
            current += 1


def as_json(run_name: str, prompt: str, samples: Sequence[Sample], watch: Stopwatch, seed: int) -> dict[str, Any]:
    """The document of `generate --json`."""
    return {
        "run": run_name,
        "prompt": prompt,
        "seed": seed,
        "samples": [
            {"text": s.text, "n_tokens": len(s.tokens), "stop_reason": s.stop_reason, "nats_per_token": s.nats_per_token} for s in samples
        ],
        "tokens_per_s": watch.tokens_per_s,
    }
