"""From a run to its score: which text, which weights, kept or computed. torch is imported only where a model is run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from minigpt_cli.config import DataConfig
from minigpt_cli.data.dataset import Dataset, open_dataset
from minigpt_cli.data.parts import learned_text
from minigpt_cli.data.sources.open_source import open_source
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.evaluation import baselines, cache
from minigpt_cli.evaluation.baselines import Baselines
from minigpt_cli.evaluation.characters import spelled
from minigpt_cli.evaluation.eval_target import Target, check_readable, score_key, weights_file
from minigpt_cli.evaluation.scores import Score
from minigpt_cli.runstore.store import Run
from minigpt_cli.tokenization.contract import END_OF_TEXT

if TYPE_CHECKING:
    import torch

Device: TypeAlias = "str | torch.device | Callable[[], str] | None"  # or how to choose one, asked when a model has to be run

DATA_LIMIT = 1 << 30  # characters of a text to score


@dataclass(frozen=True)
class Evaluation:
    """A run's score and how it came about."""

    run: Run
    ckpt: str
    step: int
    score: Score
    kept: bool  # read from the cache: no model was run
    notices: list[str] = field(default_factory=list)


def read_text(source: str, options: DataConfig | None = None) -> Target:
    """A file, folder, stream or named corpus as a text to score, as documents that each end in END_OF_TEXT where it has several, or as
    the conversations in it. Raises UsageError if it is empty or unreadable."""
    opened = open_source(source, options=options)
    documents: list[str] = []
    size = 0
    for document in opened.documents():
        pieces: list[str] = []
        for piece, _ in document.pieces:
            size += len(piece)
            if size > DATA_LIMIT:
                raise UsageError(f"{source} is longer than {DATA_LIMIT:,} characters: score a part of it")
            pieces.append(piece)
        documents += ["".join(pieces)] if any(pieces) else []
    if not size:
        raise UsageError(f"{source} is empty: there is no character to score")
    target = Target(text="".join(documents), label=source, notices=tuple(opened.notices))
    if opened.split_by == "conversation":
        return replace(target, kind="answers")
    if len(documents) == 1:
        return target
    return replace(target, text="".join(document + END_OF_TEXT for document in documents), kind="documents")


def dataset_of(run: Run) -> Dataset:
    """The data that a run was trained on: where its record says, else prepared again. Raises UsageError if the text is gone or changed."""
    corpus = run.record.corpus
    if corpus is None:
        raise UsageError(f"run {run.name!r} does not say what it was trained on: give a text with --data FILE")
    with suppress(MiniGPTError):  # moved or deleted: the text itself may still be there
        found = open_dataset(Path(corpus.dataset_dir))
        if found.sha256 == corpus.sha256:
            return found
    return _prepared_again(run, run.config.data, corpus.sha256)


def _prepared_again(run: Run, config: DataConfig, sha256: str) -> Dataset:
    from minigpt_cli.data.encoding import prepared

    gone = f"the text of run {run.name!r} ({' '.join(config.sources) or 'the default text'}) is"
    if "-" in config.sources:
        raise UsageError(f"{gone} no longer there, it came from stdin: give a text with --data FILE")
    try:
        found = prepared(config)
    except UsageError as error:
        raise UsageError(f"{gone} no longer there ({error}): give a text with --data FILE") from error
    if found.sha256 != sha256:
        raise UsageError(f"{gone} not what it was trained on, it has changed: give a text with --data FILE")
    return found


def evaluate_run(
    run: Run,
    target: Target | None = None,
    *,
    ckpt: str = "best",
    stride: int = 0,
    device: Device = None,
    fresh: bool = False,
    on_model: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """The run's score of `target` (default: its validation split), kept beside it.

    `fresh` computes it even if it is kept; `on_model` hears the run's name when its model has to be run.
    """
    target = target or Target()
    if stride > (block_size := run.config.model.block_size):
        raise UsageError(f"--stride {stride} is more than {block_size}, the block size of run {run.name!r} (0: consecutive windows)")
    check_readable(run, target)
    key = score_key(run, target, ckpt, stride)
    step = run.record.best.step if run.record.best and weights_file(run, ckpt).startswith("best") else run.record.stop_step
    if not fresh and (score := cache.find(run.dir, key)):
        return Evaluation(run, ckpt, step, score, kept=True, notices=list(run.notices))
    on_model(run.name)
    return _computed(run, target, ckpt, stride, device)


def _computed(run: Run, target: Target, ckpt: str, stride: int, device: Device) -> Evaluation:
    from minigpt_cli import checkpoints
    from minigpt_cli.evaluation.scoring import score_split, score_text

    loaded = checkpoints.load(run, ckpt, place(device))
    block_size = loaded.config.model.block_size
    if target.text is not None:
        how = {"in_parts": target.kind is not None, "block_size": block_size, "stride": stride}
        score = score_text(loaded.model, loaded.tokenizer, target.text, **how)  # type: ignore[arg-type]
    else:
        score = score_split(loaded.model, loaded.tokenizer, dataset_of(run), target.split, block_size=block_size, stride=stride)
    notices = list(loaded.notices or run.notices)
    if loaded.record.files == run.record.files:  # else an older generation was read, which the key does not name
        try:
            cache.keep(run.dir, score_key(run, target, ckpt, stride), score)
        except MiniGPTError as error:
            notices.append(f"the score is not kept: {error}")
    return Evaluation(run, ckpt, loaded.step, score, kept=False, notices=notices)


def place(device: Device) -> str | torch.device:
    """The device meant; the CPU where nothing is said."""
    return device() if callable(device) else device or "cpu"


def baselines_of(run: Run, score: Score) -> Baselines | None:
    """Baselines of the scored text fitted on what the run learned, kept beside the run; None where its data are gone.

    Of answers: with the line breaks that close them, since a model has to say where an answer ends too, over the same characters.
    """
    corpus = run.record.corpus
    if corpus is None or "train" not in corpus.splits:
        return None
    text = score.lines()
    path = baselines.kept_path(run.dir / cache.FOLDER, corpus.splits["train"].sha256, hashlib.sha256(text.encode()).hexdigest())
    if found := baselines.find_kept(path):
        return found
    try:
        training = training_text(dataset_of(run), baselines.TRAINING_CHARS)
    except UsageError:
        return None
    found = baselines.baselines(training, text, n_chars=score.n_chars)
    with suppress(MiniGPTError):  # a read-only folder: computed anew next time
        baselines.keep(path, found)
    return found


def training_text(dataset: Dataset, max_chars: int) -> str:
    """The end of what was learned of the training split, at most `max_chars` characters of it."""
    tokens, pieces = learned_text(dataset.train.tokens, dataset.tokenizer, documents=dataset.n_documents > 1)
    if len(tokens) <= max_chars:
        return spelled(tokens, pieces)[-max_chars:]
    raw = b"".join([pieces[i] for i in tokens[-max_chars:].tolist()])
    start = next(i for i, byte in enumerate(raw) if byte & 0xC0 != 0x80)  # the cut may lie inside a character
    return raw[start:].decode()[-max_chars:]
