"""`eval --memorisation`: is the model better on its training text than on similar text, and does it copy from it?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from minigpt_cli.data import chat
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import LearnedText, PartKind, learned_text, parts_of
from minigpt_cli.evaluation.characters import spelled
from minigpt_cli.evaluation.eval_target import Target
from minigpt_cli.evaluation.evaluate_run import ChooseDevice, dataset_of, evaluate_run
from minigpt_cli.evaluation.memorisation import Copies, copies
from minigpt_cli.evaluation.scores import Score
from minigpt_cli.generation.samples import Sample
from minigpt_cli.generation.sampling import Sampling
from minigpt_cli.runstore.directory import Run
from minigpt_cli.tokenization.contract import END_OF_TEXT

SAMPLES, SAMPLE_CHARS = 10, 1000
DOCUMENTS = 100  # written by a run that learned documents
AS_LEARNED = Sampling(temperature=1.0, top_k=0)  # the model's own probabilities


@dataclass(frozen=True)
class Written:
    """Documents that a run wrote from beginning to end."""

    documents: int
    ended: int  # by themselves
    known: int  # word for word in the training split


@dataclass(frozen=True)
class Memorisation:
    """How much of its training text a run remembers. Losses in nats per character."""

    val_nats_per_char: float
    train_nats_per_char: float  # of the end of the training split, as many tokens as the validation split has
    gap: float  # validation minus training
    gap_ci95: tuple[float, float]
    sampled: Copies  # in what the model writes
    unseen: Copies  # in as much text of the validation split: how long copies are without memorisation
    n_samples: int
    sample_chars: int  # in all
    written: Written | None = None  # of a run that learned documents


def memorisation(run: Run, *, ckpt: str = "best", device: ChooseDevice = lambda: "cpu") -> Memorisation:
    """The run's score on its training text, and what it copies from it when it writes. Raises UsageError if its data are missing."""
    dataset = dataset_of(run)
    validation = evaluate_run(run, Target(ckpt=ckpt), device=device).score  # of conversations, here and below: the answers
    training = _on_training(run, dataset, ckpt, device)
    gap = validation.nats_per_char - training.nats_per_char
    margin = math.hypot(*((score.ci95[1] - score.ci95[0]) / 2 for score in (validation, training)))
    samples = sampled(run, dataset, ckpt)
    written = [sample.text for sample in samples]
    unseen = spelled(*learned_text(dataset, "val"))
    return Memorisation(
        val_nats_per_char=validation.nats_per_char,
        train_nats_per_char=training.nats_per_char,
        gap=gap,
        gap_ci95=(gap - margin, gap + margin),
        sampled=copies(written, training_pieces(dataset)),
        unseen=copies(spread(unseen, len(written), sum(map(len, written))), training_pieces(dataset)),
        n_samples=len(written),
        sample_chars=sum(map(len, written)),
        written=_whole_documents(samples, dataset) if dataset.in_documents else None,
    )


def _whole_documents(samples: Sequence[Sample], dataset: Dataset) -> Written:
    known = set(dataset.text("train").split(END_OF_TEXT))
    ended = [sample.text for sample in samples if sample.stop_reason == "eot"]
    return Written(len(samples), len(ended), sum(text in known for text in ended))


def _on_training(run: Run, dataset: Dataset, ckpt: str, device: ChooseDevice) -> Score:
    from minigpt_cli import checkpoints
    from minigpt_cli.evaluation.scoring import Reader, score_ids

    loaded = checkpoints.load(run, ckpt, device())
    block_size, tokens = loaded.config.model.block_size, dataset.train.tokens
    start = _at_character(dataset, max(0, len(tokens) - len(dataset.val.tokens)))
    if len(answers := chat.answer_starts(tokens, dataset.tokenizer)):
        start = min(start, int(answers[-1]) - 1)  # there is an answer to score
    context = tokens[max(0, start - block_size) : start] if start else None
    parts = parts_of(tokens[start:], dataset.tokenizer, documents=dataset.in_documents)
    return score_ids(Reader(loaded.model, loaded.tokenizer, block_size), tokens[start:], parts=parts, context=context)


def _at_character(dataset: Dataset, start: int) -> int:
    """The first token from `start` on that begins with a whole character."""
    pieces = dataset.tokenizer.token_bytes()
    while start < len(dataset.train.tokens) - 1 and (first := pieces[int(dataset.train.tokens[start])][:1]) and first[0] & 0xC0 == 0x80:
        start += 1
    return start


def sampled(run: Run, dataset: Dataset, ckpt: str, sampling: Sampling = AS_LEARNED) -> list[Sample]:
    """What the model writes, by default at temperature 1, unfiltered, after a line break, with the nats of every token; for conversations,
    its answers to questions from all over the validation split; for documents, whole ones."""
    from minigpt_cli.generation import samples
    from minigpt_cli.generation.engine import GenerationRequest
    from minigpt_cli.generation.open_run import open_model

    writer = open_model(run, ckpt)
    chars_per_token = run.record.corpus.splits["val"].n_chars / run.record.corpus.splits["val"].n_tokens if run.record.corpus else 1.0
    length = max(1, round(SAMPLE_CHARS / chars_per_token))
    if questions := _questions(dataset, writer.config.model.block_size):
        requests = [GenerationRequest(ids, sampling, length, seed=i, stop=(chat.END,), score=True) for i, ids in enumerate(questions)]
    else:
        count = DOCUMENTS if writer.start else SAMPLES
        requests = [GenerationRequest(writer.prompt_ids(""), sampling, length, num_samples=count, ends=writer.ends, score=True)]
    engine = writer.new_engine(SAMPLES)
    return [sample for request in requests for sample in samples.collect(samples.run(engine, request), request.num_samples)]


def _questions(dataset: Dataset, block_size: int) -> list[list[int]]:
    """Token ids of the window before each of some answers in the validation split; empty where there are no conversations."""
    starts = chat.answer_starts(dataset.val.tokens, dataset.tokenizer)
    chosen = starts[np.linspace(0, len(starts) - 1, SAMPLES).astype(int)] if len(starts) else []
    return [dataset.val.tokens[max(0, start - block_size) : start].tolist() for start in chosen]


def spread(text: str, count: int, total: int) -> list[str]:
    """`count` pieces from all over `text`, together `total` characters or all that it has."""
    length = min(total, len(text)) // max(1, count)
    starts = np.linspace(0, max(0, len(text) - length), count).astype(int)
    return [text[start : start + length] for start in starts]


def training_pieces(dataset: Dataset) -> Iterator[str]:
    """What was learned from the training text, in pieces."""
    kind: PartKind | None = "answers" if dataset.chats else "documents" if dataset.in_documents else None
    return LearnedText(dataset.tokenizer, kind).pieces(dataset.train.blocks())
