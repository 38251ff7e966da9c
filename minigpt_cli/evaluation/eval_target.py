"""Which text of a run is scored, and the key of the kept score. Reads only records, so it is fast."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minigpt_cli.data.chat import TOKENS, learned_chats
from minigpt_cli.data.dataset import preceding
from minigpt_cli.data.parts import PartKind
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.evaluation.cache import ScoreKey
from minigpt_cli.runstore.directory import TOKENIZER, TOKENIZER_LIMIT, Run
from minigpt_cli.runstore.records import SplitRecord
from minigpt_cli.runstore.weights import weights_of
from minigpt_cli.storage import atomic_io
from minigpt_cli.tokenization.contract import END_OF_TEXT

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Target:
    """What is to be scored: a split of each run's own data, or one text for all, with which weights and in which windows."""

    split: SplitName = "val"
    text: str | None = None  # this text instead of a split
    label: str = ""  # of the text, as typed
    kind: PartKind | None = None  # of the text: "answers" of conversations in their template, or "documents" that each end in END_OF_TEXT
    notices: tuple[str, ...] = ()  # what was left out of the text
    ckpt: str = "best"
    stride: int = 0
    recent: int = 0


def split_record(run: Run, split: str) -> SplitRecord:
    """The record of a run's split. Raises UsageError if the run does not have this split."""
    corpus = run.record.corpus
    if corpus is None:
        raise UsageError(run.waits or f"run {run.name!r} does not say what it was trained on: give a text with --data FILE")
    if split not in corpus.splits:
        hint = ": train with --test-frac to keep one" if split == "test" else ""
        raise UsageError(f"run {run.name!r} has no {split} split{hint}")
    return corpus.splits[split]


def given_source(run: Run, split: str) -> str:
    """The sources that --val or --test names for a split; empty where the split is a part of the run's text."""
    return " ".join({"val": run.config.data.val, "test": run.config.data.test}.get(split, ()))


def score_key(run: Run, target: Target) -> ScoreKey:
    """The key of the run's score of this text. Raises RunDamaged if the run has no saved weights, UsageError for a step that is not
    kept."""
    weights = weights_of(run.dir, run.record, target.ckpt).file
    if target.text is not None:
        text, before = hashlib.sha256(target.text.encode()).hexdigest(), ""
    else:
        text = split_record(run, target.split).sha256
        previous = preceding(run.record.corpus.cut, target.split) if run.record.corpus else None
        before = split_record(run, previous).sha256 if previous else ""
    return ScoreKey(weights.sha256, text, before, target.stride, scored=scored_parts(run, target) or "", recent=target.recent)


def scored_parts(run: Run, target: Target) -> PartKind | None:
    """The parts that are scored: answers of conversations or documents with their ends; None for one text."""
    if target.text is not None:
        return target.kind
    if learned_chats(run.record):
        return "answers"
    return "documents" if run.record.corpus and run.record.corpus.n_documents > 1 else None


def check_readable(run: Run, target: Target) -> None:
    """Raise UsageError if the target is conversations or documents and the run's tokenizer has no tokens for them."""
    if target.kind is None:
        return
    path = run.file(TOKENIZER)
    try:
        added = atomic_io.parse_json(atomic_io.read_bounded(path, TOKENIZER_LIMIT), str(path))["added_tokens"]
        known = {token["content"] for token in added}
    except (OSError, KeyError, TypeError) as error:
        raise RunDamaged(f"{path} is not a tokenizer") from error
    if target.kind == "documents" and END_OF_TEXT not in known:
        raise UsageError(
            f"run {run.name!r} was trained on one text and has no token for the end of a document: "
            "give one file with --data FILE, or train on documents"
        )
    if target.kind == "answers" and not known.issuperset(TOKENS):
        raise UsageError(
            f"run {run.name!r} cannot read conversations, its tokenizer has no tokens for the speakers: "
            f"score a plain text with --data FILE.txt, or train on conversations (minigpt train {target.label})"
        )


def check_common_text(runs: Sequence[Run], target: Target) -> None:
    """Raise UsageError unless the target is the same text for all runs; called before any model is run."""
    if target.text is not None:
        for run in runs:
            check_readable(run, target)
        return
    kinds = {scored_parts(run, target): run.name for run in runs}
    if len(kinds) > 1:
        (a, of_a), (b, of_b) = list(kinds.items())[:2]
        names = {"answers": "the answers of conversations", "documents": "documents", None: "a whole text"}
        raise UsageError(f"{of_a!r} is scored on {names[a]} and {of_b!r} on {names[b]}: give a plain text for both with --data FILE.txt")
    first = split_record(runs[0], target.split)
    for run in runs[1:]:
        if split_record(run, target.split).sha256 != first.sha256:
            raise UsageError(f"{runs[0].name!r} and {run.name!r} have different {target.split} splits: give one text with --data FILE")
