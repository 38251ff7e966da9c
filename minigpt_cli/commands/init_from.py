"""--init-from: the settings, the tokenizer and the weights that a run takes over from another model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minigpt_cli.config import RunConfig
from minigpt_cli.display import format
from minigpt_cli.errors import UnknownCharacters, UsageError
from minigpt_cli.runstore.records import Base
from minigpt_cli.runstore.store import Run, RunStore

if TYPE_CHECKING:
    from minigpt_cli.checkpoints import ResumePoint
    from minigpt_cli.interchange.initialise import Source
    from minigpt_cli.tokenization.contract import Tokenizer
    from minigpt_cli.training.state import StartWeights


@dataclass(frozen=True)
class Origin:
    """The model that --init-from names."""

    what: str
    store: RunStore
    partial: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process it goes without what was read."""
        return Origin, (self.what, self.store, self.partial)

    @cached_property
    def source(self) -> Source:
        """The model, read once. Raises UsageError, RunNotFound or RunDamaged."""
        from minigpt_cli.interchange.initialise import open_source

        return open_source(self.what, self.store)

    def settings(self) -> dict[str, Any]:
        """The settings that it brings, which presets, files and flags may change: its sizes, and its tokenizer."""
        from minigpt_cli.interchange.initialise import model_settings

        source = self.source
        tokenizer = {"tokenizer": str(source.tokenizer_file)} if source.tokenizer_file else {}
        return model_settings(source) | tokenizer

    def base(self) -> Base:
        """How the run's record names it."""
        return Base(run=self.source.label, sha256=self.source.sha256)

    def check(self, config: RunConfig) -> None:
        """Raise UsageError for adapters on weights that may be gone tomorrow."""
        if config.lora.quantize_base != "off":
            from minigpt_cli.accel.quantized import library

            library()
        if config.lora.lora_rank and self.source.kind != "run":
            raise UsageError(
                f"--lora-rank keeps adapters for a run, and {self.what} is not a run: minigpt runs import {format.quoted(self.what)} "
                "--name base, then --init-from base"
            )

    def weights(self, config: RunConfig, tokenizer: Tokenizer) -> StartWeights:
        """A whole state dict for `config`. Raises UsageError unless it fits, or --partial."""
        from minigpt_cli.interchange.initialise import initial_weights
        from minigpt_cli.training.state import StartWeights

        tensors, report = initial_weights(self.source, config.model, tokenizer, partial=self.partial, seed=config.seed)
        theirs = self.source.tensors
        whole = [n for n, t in tensors.items() if n not in theirs or t.shape != theirs[n].shape or not t.equal(theirs[n])]
        return StartWeights(tensors, whole if config.lora.lora_rank else [], [f"from {report.label}: {report.counts()}", *report.notes])


@contextmanager
def explained_characters(origin: Origin | None) -> Iterator[None]:
    """Say what to do about characters in the new text that the tokenizer of --init-from lacks."""
    try:
        yield
    except UnknownCharacters as error:
        if origin is None:
            raise
        remedy = "add --tokenizer char, which learns the characters of this text: tokens that both know keep their weights"
        raise UnknownCharacters(f"{str(error).rpartition(': ')[0]}: {remedy}") from error


def check_adapters(config: RunConfig, origin: Origin | None) -> None:
    """Raise UsageError for adapters without anything to adapt."""
    if origin is not None:
        origin.check(config)
    elif config.lora.lora_rank:
        raise UsageError("--lora-rank adapts the weights of a run: name it with --init-from RUN")


def weights_to_resume(run: Run, point: ResumePoint) -> StartWeights | None:
    """What a run with adapters adds them to; None for any other run, whose save holds everything."""
    if not point.config.lora.lora_rank:
        return None
    from minigpt_cli.checkpoints import frozen_weights
    from minigpt_cli.models.lora import is_adapter
    from minigpt_cli.training.state import StartWeights

    return StartWeights(frozen_weights(run, point.last), [name for name in point.last if not is_adapter(name)])
