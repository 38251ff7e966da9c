"""The score of a run: read where it is kept, else computed. torch is imported only where a model is run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.data.cleaning import Cleaning
from minigpt_cli.data.dataset import Dataset, open_dataset
from minigpt_cli.data.parts import learned_text
from minigpt_cli.data.sources.open_source import open_source
from minigpt_cli.errors import MiniGPTError, UnknownCharacters, UsageError
from minigpt_cli.evaluation import baselines, cache
from minigpt_cli.evaluation.baselines import Baselines
from minigpt_cli.evaluation.characters import begins_character, spelled
from minigpt_cli.evaluation.eval_target import Target, check_readable, score_key
from minigpt_cli.evaluation.scores import Score
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.runstore.weights import weights_of
from minigpt_cli.tokenization.contract import END_OF_TEXT

ChooseDevice = Callable[[], str]
"""Where to compute; asked only when a model has to be run, since choosing imports torch."""

DATA_LIMIT = 1 << 30  # characters of a text to score


@dataclass(frozen=True)
class Evaluation:
    """A run's score and where it comes from."""

    run: Run
    ckpt: str
    step: int
    score: Score
    kept: bool  # whether it was read from the cache, so that no model was run
    notices: list[str] = field(default_factory=list)


def read_text(source: str, options: DataConfig | None = None) -> Target:
    """A file, folder, stream or named corpus as something to score: one text, several documents that each end in END_OF_TEXT, or
    conversations. Raises UsageError if it is empty or unreadable."""
    opened, cleaning = open_source(source, options=options), Cleaning(options or DataConfig())
    documents: list[str] = []
    size = 0
    for document in cleaning.documents(opened):
        pieces: list[str] = []
        for piece in document.pieces:
            size += len(piece.text)
            if size > DATA_LIMIT:
                raise UsageError(f"{source} is longer than {DATA_LIMIT:,} characters: score a part of it")
            pieces.append(piece.text)
        documents += ["".join(pieces)] if any(pieces) else []
    if not size:
        raise UsageError(f"{source} is empty: there is no character to score")
    target = Target(text="".join(documents), label=source, notices=(*opened.notices, *cleaning.notices))
    if opened.split_by == "conversation":
        return replace(target, kind="answers")
    if len(documents) == 1:
        return target
    return replace(target, text="".join(document + END_OF_TEXT for document in documents), kind="documents")


class Trained(Protocol):
    """A run, or what is in memory of one."""

    @property
    def name(self) -> str: ...
    @property
    def record(self) -> RunRecord: ...
    @property
    def config(self) -> RunConfig: ...


def dataset_of(run: Trained) -> Dataset:
    """The data that a run was trained on, prepared again if need be. Raises UsageError if the text is missing or changed."""
    corpus = run.record.corpus
    if corpus is None:
        raise UsageError(f"run {run.name!r} does not say what it was trained on: give a text with --data FILE")
    with suppress(MiniGPTError):  # moved or deleted: the text itself may still be there
        found = open_dataset(Path(corpus.dataset_dir))
        if found.has_splits_of(corpus):
            return found
    found = _prepared_again(run, run.config.data, corpus.sha256)
    if not found.has_splits_of(corpus):
        raise UsageError(
            f"this edition of minigpt cuts the text of run {run.name!r} into other tokens than in training, and those are no longer in "
            f"{corpus.dataset_dir}: restore that folder, or give a text with --data FILE"
        )
    return found


def _prepared_again(run: Trained, config: DataConfig, sha256: str) -> Dataset:
    from minigpt_cli.data.encoding import prepared

    text = f"the text of run {run.name!r} ({' '.join(config.sources) or 'the default text'})"
    if "-" in config.sources:
        raise UsageError(f"{text} is no longer there, it came from stdin: give a text with --data FILE")
    try:
        found = prepared(config)
    except UsageError as error:
        raise UsageError(f"{text} is no longer there ({error}): give a text with --data FILE") from error
    if found.sha256 != sha256:
        raise UsageError(f"{text} has changed since training: give a text with --data FILE")
    return found


def evaluate_run(
    run: Run,
    target: Target | None = None,
    *,
    device: ChooseDevice = lambda: "cpu",
    fresh: bool = False,
    dataset: Dataset | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """The run's score of `target` (default: its validation split), kept in the run's folder.

    `fresh` computes it even if it is kept; `dataset` is the run's data, if it is open already; `advance` is called with the tokens scored
    and all tokens while the model runs.
    """
    target = target or Target()
    ckpt, stride = target.ckpt, target.stride
    if stride > (block_size := run.config.model.block_size):
        raise UsageError(f"--stride {stride} is more than {block_size}, the block size of run {run.name!r} (0: consecutive windows)")
    check_readable(run, target)
    key = score_key(run, target)
    if not fresh and (score := cache.find(run.dir, key)):
        step = weights_of(run.dir, run.record, ckpt).step
        return Evaluation(run, ckpt, step, score, kept=True, notices=list(run.notices))
    from minigpt_cli import checkpoints
    from minigpt_cli.evaluation.scoring import Reader, score_split, score_text

    loaded = checkpoints.load(run, ckpt, device())
    reader = Reader(loaded.model, loaded.tokenizer, block_size, stride, target.recent, advance)
    if target.text is not None:
        try:
            score = score_text(reader, target.text, in_parts=target.kind is not None)
        except UnknownCharacters as error:  # several runs may be scored
            raise UnknownCharacters(f"run {run.name!r}: {error}") from None
    else:
        score = score_split(reader, dataset or dataset_of(run), target.split)
    notices = list(loaded.notices or run.notices)
    if loaded.record.files == run.record.files:  # else an older generation was read, which the key does not name
        try:
            cache.keep(run.dir, key, score)
        except MiniGPTError as error:
            notices.append(f"the score is not kept: {error}")
    return Evaluation(run, ckpt, loaded.step, score, kept=False, notices=notices)


def kept_score(run: Run, target: Target | None = None) -> Score | None:
    """The run's score of `target` (default: its validation split) if it is kept; no model is run."""
    return cache.find(run.dir, score_key(run, target or Target())) if run.record.files and run.record.corpus else None


def baselines_of(run: Run, score: Score) -> Baselines | None:
    """Baselines of the scored text, fitted on what the run learned and kept in the run's folder; None where its data are missing.

    For answers, the line break that ends each is included, since the model is also scored on where an answer ends.
    """
    corpus = run.record.corpus
    if corpus is None or "train" not in corpus.splits:
        return None
    text = score.lines()
    path = baselines.kept_path(run.dir, corpus.splits["train"].sha256, hashlib.sha256(text.encode()).hexdigest())
    if found := baselines.find_kept(path):
        return found
    try:
        training = training_text(dataset_of(run), baselines.TRAINING_CHARS)
    except UsageError:
        return None
    found = baselines.baselines(training, text, n_chars=score.n_chars)
    with suppress(MiniGPTError):  # a read-only folder: computed again next time
        baselines.keep(path, found)
    return found


def training_text(dataset: Dataset, max_chars: int) -> str:
    """The last `max_chars` characters at most of what was learned from the training split."""
    tokens, pieces = learned_text(dataset, "train")
    if len(tokens) <= max_chars:
        return spelled(tokens, pieces)[-max_chars:]
    raw = b"".join([pieces[i] for i in tokens[-max_chars:].tolist()])
    start = int(begins_character(raw).argmax())  # the cut may lie inside a character
    return raw[start:].decode()[-max_chars:]
