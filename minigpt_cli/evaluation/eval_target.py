"""Which text of which run is scored, and under which key its score is kept. Light: it reads only records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minigpt_cli.data.chat import TOKENS, learned_chats
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.evaluation.cache import ScoreKey
from minigpt_cli.runstore.directory import TOKENIZER, TOKENIZER_LIMIT
from minigpt_cli.runstore.records import SplitRecord
from minigpt_cli.runstore.store import Run
from minigpt_cli.storage import atomic_io

SplitName = Literal["train", "val", "test"]
BEFORE: dict[str, str] = {"val": "train", "test": "val"}  # splits are contiguous: what each follows


@dataclass(frozen=True)
class Target:
    """What is to be scored: a split of each run's own data, or one text for all."""

    split: SplitName = "val"
    text: str | None = None  # given: this, with nothing before it
    label: str = ""  # of the text, as typed
    conversations: bool = False  # the text is conversations in their template, of which the answers alone are scored


def split_record(run: Run, split: str) -> SplitRecord:
    """What the run's record says of a split. Raises UsageError if there is none."""
    corpus = run.record.corpus
    if corpus is None:
        raise UsageError(f"run {run.name!r} does not say what it was trained on: give a text with --data FILE")
    if split not in corpus.splits:
        hint = ": train with --test-frac to keep one" if split == "test" else ""
        raise UsageError(f"run {run.name!r} has no {split} split{hint}")
    return corpus.splits[split]


def weights_file(run: Run, ckpt: str) -> str:
    """The file that `ckpt` means: the best where there is one, else the last."""
    return "best.safetensors" if ckpt == "best" and "best.safetensors" in run.record.files else "last.safetensors"


def score_key(run: Run, target: Target, ckpt: str = "best", stride: int = 0) -> ScoreKey:
    """The key under which the run's score of this text is kept. Raises RunDamaged if it never saved weights."""
    weights = run.record.files.get(weights_file(run, ckpt))
    if weights is None:
        raise RunDamaged(f"run {run.name!r} has saved no weights yet")
    if target.text is not None:
        text, before = hashlib.sha256(target.text.encode()).hexdigest(), ""
    else:
        preceding = BEFORE.get(target.split)
        text, before = split_record(run, target.split).sha256, split_record(run, preceding).sha256 if preceding else ""
    return ScoreKey(weights.sha256, text, before, stride, scored="answers" if scores_answers(run, target) else "")


def scores_answers(run: Run, target: Target) -> bool:
    """Whether the answers of conversations are scored, not a whole text."""
    if target.text is not None:
        return target.conversations
    return learned_chats(run.record)


def check_readable(run: Run, target: Target) -> None:
    """Raise UsageError for conversations and a run whose tokenizer has no marks for them."""
    if not target.conversations:
        return
    path = run.file(TOKENIZER)
    try:
        added = atomic_io.parse_json(atomic_io.read_bounded(path, TOKENIZER_LIMIT), str(path))["added_tokens"]
        known = {token["content"] for token in added}
    except (OSError, KeyError, TypeError) as error:
        raise RunDamaged(f"{path} is not a tokenizer") from error
    if not known.issuperset(TOKENS):
        raise UsageError(
            f"run {run.name!r} cannot read conversations, its tokenizer has no marks for who speaks: "
            f"score a plain text with --data FILE.txt, or train on conversations (minigpt train {target.label})"
        )


def check_common_text(runs: Sequence[Run], target: Target) -> None:
    """Raise UsageError unless the target is the same characters for all runs, before any model is run."""
    if target.text is not None:
        for run in runs:
            check_readable(run, target)
        return
    if len({scores_answers(run, target) for run in runs}) > 1:
        chats, plain = (next(run.name for run in runs if scores_answers(run, target) is wanted) for wanted in (True, False))
        raise UsageError(
            f"{chats!r} is scored on the answers of conversations and {plain!r} on a whole text: "
            "give a plain text for both with --data FILE.txt"
        )
    first = split_record(runs[0], target.split)
    for run in runs[1:]:
        if split_record(run, target.split).sha256 != first.sha256:
            raise UsageError(f"{runs[0].name!r} and {run.name!r} have different {target.split} splits: give one text with --data FILE")
