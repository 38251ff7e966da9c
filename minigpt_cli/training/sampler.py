"""Samples of what the model writes while it is trained. They have a random generator of their own and change nothing in training."""

from __future__ import annotations

import time
from collections.abc import Callable

from minigpt_cli.config import RunConfig
from minigpt_cli.data.opening import opening_of
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.events import Sampled, Sampling
from minigpt_cli.generation.open_run import in_training, sample_pieces
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.tokenization.contract import Tokenizer
from minigpt_cli.training.state import TrainingState

_SHARE = 0.01  # of the training time, which samples that nobody asked for may take
_LONGEST = 1 << 16  # characters of a sample


class Sampler:
    """Writes samples with the weights that are evaluated."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, state: TrainingState, *, on_screen: bool) -> None:
        """`on_screen`: a live view shows samples, so that they are written at evaluations even if nobody asked for them."""
        self._config, self._tokenizer, self._state = config, tokenizer, state
        self._every, self._prompt = config.eval.sample_every, config.eval.sample_prompt
        self._unasked = on_screen and not config.compute.fsdp  # split weights cannot be decoded by one process
        self._spent_s = self._last_s = 0.0
        self._step = -1  # of the last sample

    def is_due(self, step: int, elapsed_s: float, *, evaluated: bool) -> bool:
        """Whether a sample is written after `step`, at which the model was evaluated or not."""
        if step == self._step:
            return False
        if self._every != "auto":
            return self._every > 0 and step % self._every == 0
        affordable = self._spent_s + self._last_s <= _SHARE * elapsed_s
        return evaluated and (bool(self._prompt) or (self._unasked and affordable))

    def __call__(self, record: RunRecord, step: int, show: Callable[[Sampling], None], stops: Callable[[], bool]) -> Sampled | None:
        """A sample, of which `show` gets each piece; None if training `stops` meanwhile, or if the weights are not finite."""
        began = time.perf_counter()
        text = ""
        try:
            with self._state.measured() as model:
                loaded = in_training(model, self._config, record, self._tokenizer, step)
                opening = opening_of(record, self._tokenizer)
                prompt = self._prompt or (opening.text if opening.chat else "")
                for piece in sample_pieces(loaded, opening, self._prompt):
                    if stops():
                        return None
                    text = (text + piece)[:_LONGEST]
                    show(Sampling(run=record.name, step=step, prompt=prompt, text=text))
        except MiniGPTError:
            return None
        self._last_s = time.perf_counter() - began
        self._spent_s += self._last_s
        self._step = step
        return Sampled(run=record.name, step=step, prompt=prompt, text=text)
