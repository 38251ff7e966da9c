"""Open a run for generation without torch: weights from safetensors to NumPy, with the checks of checkpoints.py.

checkpoints.py reads a torch model if C cannot decode the run (no library, an unknown architecture) or this module cannot read its
weights (not float32, adapters).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.data.chat import END, TOKENS, learned_chats, token_ids
from minigpt_cli.data.cleaning import cleaned_prompt
from minigpt_cli.data.opening import Opening
from minigpt_cli.generation.decoders.contract import Decoder
from minigpt_cli.generation.decoders.weights import check_declared_weights, decoder_weights, expected_shapes
from minigpt_cli.generation.engine import Engine, GenerationRequest, Step
from minigpt_cli.generation.samples import Stopwatch, prompt_ids
from minigpt_cli.generation.samples import run as run_request
from minigpt_cli.generation.select_decoder import check_engine, decoder_of, needs_torch
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import TOKENIZER, TOKENIZER_LIMIT, Run
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.runstore.weights import BEST, checkpoint_named, weights_of
from minigpt_cli.storage import safetensors
from minigpt_cli.storage.memory import check_memory
from minigpt_cli.storage.safetensors import TensorInfo
from minigpt_cli.tokenization.contract import END_OF_TEXT, Tokenizer, end_of_text
from minigpt_cli.tokenization.pretrained import saved_tokenizer

_SAMPLE_TOKENS = 200


@dataclass(frozen=True)
class LoadedModel:
    """Everything that generation needs of a run."""

    run: str
    step: int
    config: Any  # RunConfig
    tokenizer: Tokenizer
    token_bytes: list[bytes]
    model: Any  # DecoderWeights if C decodes it, else the torch model
    engine: str = "auto"
    notices: list[str] = field(default_factory=list)
    start: tuple[int, ...] = ()  # tokens before every prompt, such as the end of the previous document
    ends: tuple[str, ...] = ()  # what ends a text: the end of a document or of an answer
    reading: DataConfig = field(default_factory=DataConfig)  # how the run's text was cleaned, and prompts are too

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids to continue. Raises UsageError for unknown characters."""
        return [*self.start] if self.start and not prompt else [*self.start, *self.text_ids(prompt)]

    def text_ids(self, prompt: str) -> list[int]:
        """Ids of a prompt alone, cleaned as the run's text was."""
        return prompt_ids(self.tokenizer, cleaned_prompt(self.reading, prompt))

    def decoder(self, slots: int = 1) -> Decoder:
        """A decoder of this run's weights, for `slots` sequences at once."""
        return decoder_of(self.model, slots, self.engine)

    def new_engine(self, slots: int = 1) -> Engine:
        """An engine for `slots` sequences at once; of a run trained with --document-mask, each document is written alone."""
        end_of_text = self.start[0] if self.start and self.config.data.document_mask else None
        return Engine(self.decoder(slots), self.token_bytes, end_of_text)

    def steps(self, request: GenerationRequest, watch: Stopwatch | None = None) -> Generator[Step]:
        """Every step of one request; `watch` measures the time of decoding alone."""
        return run_request(self.new_engine(request.num_samples), request, watch)


def open_model(run: Run, which: str = "best", engine: str = "auto") -> LoadedModel:
    """The best, last or kept weights of `run`, to be decoded by `engine`. Raises RunDamaged if neither generation is complete, UsageError
    for an unknown checkpoint or engine."""
    check_engine(engine)
    which = checkpoint_named(which)
    writer, notices = snapshots.read_newest(run, partial(_read, run=run, which=which, engine=engine))
    if writer is None:
        return _open_with_torch(run, which, engine)
    return LoadedModel(**{**vars(writer), "notices": [*writer.notices, *notices]})


def in_training(model: Any, config: RunConfig, record: RunRecord, tokenizer: Tokenizer, step: int) -> LoadedModel:
    """A torch model that is being trained, to generate with; C decodes a copy of its present weights where it can."""
    engine = "torch" if config.lora.lora_rank else "auto"  # C does not know adapters
    bounds = _as_learned(record, config, tokenizer)
    return LoadedModel(record.name, step, config, tokenizer, tokenizer.token_bytes(), model, engine, **bounds)


def sample_pieces(loaded: LoadedModel, opening: Opening, prompt: str = "") -> Iterator[str]:
    """A sample with the run's own seed, piece by piece: what follows `prompt`, or short documents, a line each; of conversations, the
    answer to `prompt` or to `opening`."""
    asked = (opening._replace(text=prompt) if prompt else opening).raw if opening.chat else prompt
    ends = TOKENS if opening.chat else ()
    request = GenerationRequest(loaded.prompt_ids(asked), max_new_tokens=_SAMPLE_TOKENS, seed=loaded.config.seed, ends=ends)
    for step in loaded.steps(request):
        yield step.text.replace(END_OF_TEXT, "\n")


def _read(folder: Path, record: RunRecord, run: Run, which: str, engine: str) -> LoadedModel | None:
    config = snapshots.read_config(folder, record)
    if needs_torch(config.model, engine) or config.lora.lora_rank:  # adapters are added to their base by checkpoints.py
        return None
    tokenizer = saved_tokenizer(snapshots.read_file(folder, record, TOKENIZER, TOKENIZER_LIMIT), folder / TOKENIZER)
    file = weights_of(folder, record, which)
    notices = []
    if which == "best" and file.path.name != BEST and record.stop_reason != "imported":  # an imported run has one set of weights
        notices.append(f"run {run.name!r} has no best checkpoint yet: using its last, of step {record.stop_step}")
    check = partial(_check, file.path, config.model, tokenizer.vocab_size)
    arrays = safetensors.read(file.path, file.file, check).arrays()
    if arrays is None:
        return None
    safetensors.check_finite(file.path, arrays)
    weights = decoder_weights(config.model, arrays)
    return LoadedModel(
        run.name, file.step, config, tokenizer, tokenizer.token_bytes(), weights, engine, notices, **_as_learned(record, config, tokenizer)
    )


def _as_learned(record: RunRecord, config: RunConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """`reading`, `start` and `ends` of a run's texts, by what it was trained on."""
    return {"reading": config.data, **text_bounds(record, tokenizer)}


def text_bounds(record: RunRecord, tokenizer: Tokenizer) -> dict[str, Any]:
    """`start` (token ids) and `ends` (texts of tokens) of the texts that a run learned; without an entry where they have none."""
    if learned_chats(record) and token_ids(tokenizer) is not None:
        return {"ends": (END,)}
    if record.corpus is None or (end := end_of_text(tokenizer)) is None:
        return {}
    start = (end,) if record.corpus.n_documents > 1 else ()
    return {"start": start, "ends": (END_OF_TEXT,)}


def _check(path: Path, config: Any, vocab_size: int, found: Mapping[str, TensorInfo]) -> None:
    """Raise RunDamaged unless the file holds the tensors of this configuration, MiniGPTError if there is no memory to decode them."""
    check_declared_weights(config, vocab_size, {name: info.shape for name, info in found.items()})
    safetensors.check_shapes(path, found, expected_shapes(config, vocab_size))
    check_memory(8 * sum(info.n_elements for info in found.values()), f"the weights in {path}")


def _open_with_torch(run: Run, which: str, engine: str) -> LoadedModel:
    from minigpt_cli.checkpoints import load

    loaded = load(run, which)
    t = loaded.tokenizer
    bounds = _as_learned(loaded.record, loaded.config, t)
    return LoadedModel(run.name, loaded.step, loaded.config, t, t.token_bytes(), loaded.model, engine, list(loaded.notices), **bounds)
