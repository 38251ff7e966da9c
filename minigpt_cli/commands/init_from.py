"""--init-from: the settings, the tokenizer and the weights that a run takes from another model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minigpt_cli.commands.config_sources import Resolved
from minigpt_cli.config import RunConfig
from minigpt_cli.display import format, waiting
from minigpt_cli.errors import UnknownCharacters, UsageError
from minigpt_cli.escaping import one_line
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Base
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage.hub import PREFIX

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
        """Another process gets the name only, and reads the model itself: of the hub, the same commit."""
        what = self.source.label if self.what.startswith(PREFIX) else self.what
        return Origin, (what, self.store, self.partial)

    @cached_property
    def source(self) -> Source:
        """The model, read once. Raises UsageError, RunNotFound or RunDamaged."""
        return open_model(self.what, self.store)

    def settings(self) -> dict[str, Any]:
        """Its sizes and its tokenizer. Presets, files and flags override them."""
        from minigpt_cli.interchange.initialise import model_settings

        file = self.source.tokenizer_file
        return model_settings(self.source) | ({"tokenizer": str(file), "new_characters": True} if file else {})

    def base(self) -> Base:
        """Its name and hash for the run's record."""
        return Base(run=self.source.label, sha256=self.source.sha256)

    def weights(self, config: RunConfig, tokenizer: Tokenizer) -> StartWeights:
        """A complete state dict for `config`. Raises UsageError if the weights do not fit, unless --partial is given."""
        from minigpt_cli.interchange.initialise import initial_weights
        from minigpt_cli.training.state import StartWeights

        tensors, report = initial_weights(self.source, config.model, tokenizer, partial=self.partial, seed=config.seed)
        theirs = self.source.tensors
        whole = [n for n, t in tensors.items() if n not in theirs or t.shape != theirs[n].shape or not t.equal(theirs[n])]
        return StartWeights(tensors, whole if config.lora.lora_rank else [], [f"from {report.label}: {report.counts()}", *report.notes])


def open_model(what: str, store: RunStore) -> Source:
    """The model at a path, of a run or of the hub. Raises UsageError, RunNotFound or RunDamaged."""
    from minigpt_cli.interchange.initialise import open_source

    if what.startswith(PREFIX):
        waiting.show(f"downloading {one_line(what)}")
    return open_source(what, store)


@contextmanager
def explained_characters(origin: Origin | None) -> Iterator[None]:
    """Tell in the error what to do if the tokenizer of --init-from does not know all characters of the new text."""
    try:
        yield
    except UnknownCharacters as error:
        if origin is None:
            raise
        remedy = "add --tokenizer char, which learns the characters of this text: tokens that both know keep their weights"
        raise UnknownCharacters(f"{str(error).rpartition(': ')[0]}: {remedy}") from error


def check_adapters(config: RunConfig, origin: Origin | None) -> None:
    """Raise UsageError for --lora-rank without weights, or with weights that are not a run of this store."""
    if origin is not None and config.lora.quantize_base != "off":
        from minigpt_cli.training.quantized import library

        library()
    if config.lora.lora_rank and origin is None:
        raise UsageError("--lora-rank adapts the weights of a run: name it with --init-from RUN")
    if config.lora.lora_rank and origin is not None and "/" in origin.source.label and origin.source.kind == "run":
        raise UsageError(f"--lora-rank keeps adapters for a run, and {origin.source.label} is the teacher of one: name that run")
    if config.lora.lora_rank and origin is not None and origin.source.kind != "run":
        raise UsageError(
            f"--lora-rank keeps adapters for a run, and {origin.what} is not a run: minigpt runs import {format.quoted(origin.what)} "
            "--name base, then --init-from base"
        )


def check_vocabulary(wanted: Resolved, origin: Origin | None) -> None:
    """Raise UsageError for --vocab-size where no vocabulary is learned: with that of --init-from, or with the default tokenizer."""
    if wanted.sources["vocab_size"] != "--vocab-size" or wanted.config.data.tokenizer == "bpe":
        return
    if origin is None and wanted.sources["tokenizer"] == "default":
        raise UsageError("--vocab-size is for a vocabulary that is learned: add --tokenizer bpe")
    if origin is not None:
        raise UsageError(
            f"--vocab-size is for a vocabulary that is learned, and {origin.what} brings its own: leave it out, or add --tokenizer bpe, "
            "with which the tokens that both have keep their weights and the others are forgotten"
        )


def weights_to_resume(run: Run, point: ResumePoint) -> StartWeights | None:
    """The frozen weights of a run with adapters; None for any other run, whose save is complete."""
    if not point.config.lora.lora_rank:
        return None
    from minigpt_cli.checkpoints import frozen_weights
    from minigpt_cli.models.lora import is_adapter
    from minigpt_cli.training.state import StartWeights

    return StartWeights(frozen_weights(run, point.last), [name for name in point.last if not is_adapter(name)])
