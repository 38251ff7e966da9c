"""The ward: runs that are sick from a known cause, and healthy ones, to be told apart by what they show. No torch.

The pool, cases.jsonl, was made by tests/benchmarks/ward_cases.py: real runs, trained with one fault each. One more case can be trained on
the learner's own text (`own_training`), and is then judged as `minigpt runs diagnose` judges it.
"""

from __future__ import annotations

import json
import random
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from minigpt_cli.commands.diagnose import commands_for
from minigpt_cli.commands.samples import sample_of
from minigpt_cli.display import format
from minigpt_cli.escaping import one_line
from minigpt_cli.evaluation.diagnosis import FAR, NEAR, Symptoms, diagnose, symptoms_of
from minigpt_cli.evaluation.evaluate_run import baselines_of, kept_score
from minigpt_cli.runstore.directory import Run

HEALTHY = "healthy"
SAMPLE = 200  # characters
_COLUMNS, _WIDTH, _ROWS, _TITLE = 6, 78, 10, 24


@dataclass(frozen=True)
class Kind:
    """One thing that a run may have, in words."""

    label: str
    why: str  # how it is seen
    mend: str  # what helps
    like: tuple[str, ...]  # what it may be taken for


KINDS = {
    "rate too high": Kind(
        "the learning rate is too high",
        "Each step goes too far, so losses jump, or stay above those of character pairs.",
        "lower the learning rate",
        ("context unused", "rate too low or stopped early", "evaluation too noisy"),
    ),
    "rate too low or stopped early": Kind(
        "the learning rate is too low, or training ended too early",
        "Both losses were still falling steadily at the end: it had not learned what it could.",
        "raise the learning rate, or train longer",
        ("context unused", "validation unlike training", "rate too high"),
    ),
    "overfitting": Kind(
        "it overfits: training goes on after validation is at its best",
        "The training loss falls to the end, while the validation loss turns and rises.",
        "use more text, dropout, or stop earlier",
        ("validation unlike training", "leak between splits", "rate too high"),
    ),
    "too little text": Kind(
        "there is far too little text for this model",
        "It read the same few characters many times and learned them by heart.",
        "use more text (--max-chars 0 is all of it) or a smaller model",
        ("validation unlike training", "leak between splits", "rate too low or stopped early"),
    ),
    "context unused": Kind(
        "it uses only the last few characters",
        "It ends near character pairs, and more characters before the next one save nothing.",
        "give the model a longer window and attention",
        ("rate too low or stopped early", "too little text", "rate too high"),
    ),
    "leak between splits": Kind(
        "the validation text is in the training text too",
        "xz needs far less for the validation text after the training text than alone.",
        "split the text so that equal lines come into one split",
        ("overfitting", "evaluation too noisy", "context unused"),
    ),
    "validation unlike training": Kind(
        "the validation text is of another kind than the training text",
        "The gap is there before the text was read once, too soon for learning by heart.",
        "take the validation text from all parts of the text",
        ("overfitting", "too little text", "rate too high"),
    ),
    "evaluation too noisy": Kind(
        "its losses are measured on too few characters",
        "The curve jumps by about the uncertainty of one evaluation, so it says little.",
        "measure on the whole validation split, or make it larger",
        ("rate too high", "overfitting", "leak between splits"),
    ),
    "dead experts": Kind(
        "some of its experts get almost no tokens",
        "The router sends nearly all tokens to the others, so parameters are wasted.",
        "balance the experts more strongly",
        ("overfitting", "rate too high", "rate too low or stopped early"),
    ),
    "diverged": Kind(
        "training diverged: the losses exploded",
        "Its training loss rose far above that of knowing nothing, or was no longer a number.",
        "lower the learning rate by a factor of ten, and clip gradients",
        ("validation unlike training", "too little text", "evaluation too noisy"),
    ),
    HEALTHY: Kind(
        "nothing is wrong",
        "Both losses fall together, end below character pairs, and stay close.",
        "",
        ("overfitting", "rate too low or stopped early", "leak between splits", "evaluation too noisy", "context unused"),
    ),
}


@dataclass(frozen=True)
class Option:
    """One of the four answers."""

    id: str  # a key of KINDS

    @property
    def text(self) -> str:
        return KINDS[self.id].label


@dataclass(frozen=True)
class Case:
    """One run of the ward: what it shows, and what it has."""

    name: str
    answer: str  # a key of KINDS
    text: str  # the name of its text
    arch: str
    n_params: int
    block_size: int
    train_chars: int
    val_chars: int
    steps: int
    max_steps: int
    epochs: float
    curve: list[list[float | None]]  # step, training and validation loss in nats per character
    best: list[float] | None  # nats per character and step; None: no evaluation had a finite loss
    measured: int  # tokens that one evaluation reads
    noise: float | None  # the uncertainty of one evaluation, ± nats per character
    baselines: dict[str, float]  # uniform, bigram, xz, xz_alone; empty where they cannot be counted
    context: float | None  # nats that a character costs less with many tokens before it
    least_expert: float | None  # share of an even load
    sample: str
    evidence: str  # what `runs diagnose` says; "" where it finds nothing
    mend: str  # a command; "" where nothing is to be mended
    others: list[str]  # what `runs diagnose` finds besides

    @property
    def screen(self) -> list[str]:
        """What there is to see: at most 10 lines of at most 78 characters."""
        size = f"{self.arch}, {format.count(self.n_params)} parameters, window {self.block_size}"
        rows = {
            "text": f"{self.text}: training {self.train_chars:,} characters, validation {self.val_chars:,}",
            "model": f"{size}; {self.steps}/{self.max_steps} steps, {self.epochs:.3g} epochs",
            "step": "".join(f"{int(row[0] or 0):>9}" for row in self.curve),
            "train": "".join(f"{_loss(row[1]):>9}" for row in self.curve) + "  nats/char",
            "validation": "".join(f"{_loss(row[2]):>9}" for row in self.curve),
            "best": "no loss was a number" if self.best is None else f"{self.best[0]:.2f} at step {self.best[1]:.0f}; {self._measured}",
        }
        if found := self.baselines:
            xz = f"xz {found['xz']:.2f}, xz alone {found['xz_alone']:.2f}"
            rows["baselines"] = f"uniform {found['uniform']:.2f}, character pairs {found['bigram']:.2f}, {xz}"
        if self.context is not None and self.block_size > FAR:
            rows["context"] = f"more than {FAR} tokens before a character save {self.context:z.2f} over at most {NEAR}"
        if self.least_expert is not None:
            rows["experts"] = f"the least used one gets {self.least_expert:.0%} of an even share"
        lines = [f"{name:<11}{value}" for name, value in rows.items()]
        sample = textwrap.wrap(one_line(self.sample.replace("\n", "⏎")), _WIDTH - 11)[: _ROWS - len(lines)]
        return [line[:_WIDTH] for line in lines] + [f"{'' if n else 'sample':<11}{line}" for n, line in enumerate(sample)]

    @property
    def _measured(self) -> str:
        noise = "" if self.noise is None else f", ±{self.noise:.2f}"
        return f"each loss is of {self.measured:,} tokens{noise}"

    @property
    def options(self) -> list[Option]:
        """Four answers: the right one and what it may be taken for, in an order of this case alone; "nothing is wrong" is the last."""
        draw = random.Random(self.name)
        like = [kind for kind in KINDS[self.answer].like if kind not in self.others]
        if self.least_expert is not None and self.least_expert > 0.5:  # else they are dead too
            like.append("dead experts")
        if self.answer == HEALTHY:
            chosen = draw.sample(like, 3)
        else:
            chosen = [self.answer, *draw.sample(like, min(2, len(like)))]
            draw.shuffle(chosen)
        return [*map(Option, chosen), Option(HEALTHY)]

    @property
    def explanation(self) -> list[str]:
        """What is wrong, how it is seen, and the command that mends it: a paragraph each."""
        kind = KINDS[self.answer]
        lines = [f"What is wrong: {kind.label}. {kind.why}" if self.answer != HEALTHY else f"Nothing is wrong with it. {kind.why}"]
        lines += [f"Here {self.evidence}."] if self.evidence else []
        return [*lines, *([f"To mend it, {kind.mend}: {self.mend}"] if self.mend else [])]


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ---- the pool


@cache
def pool() -> list[Case]:
    """All recorded cases."""
    lines = (files("minigpt_cli.course") / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [Case(**json.loads(line)) for line in lines]


def draw(seed: int, n: int, after: int = 0) -> list[Case]:
    """`n` cases of the pool, those after the first `after` of this seed: draw(s, 2) and draw(s, 3, after=2) have none in common.

    Cases of different kinds come first, so that no kind comes twice before all came once.
    """
    shuffled = random.Random(seed).sample(pool(), len(pool()))
    turns = [sum(other.answer == case.answer for other in shuffled[:i]) for i, case in enumerate(shuffled)]
    in_turns = [case for _, _, case in sorted(zip(turns, range(len(turns)), shuffled, strict=True))]
    return in_turns[after : after + n]


def summary(before: Sequence[bool], after: Sequence[bool]) -> str:
    """How a learner did, said with the doubt that so few cases need."""
    n = len(before) + len(after)
    counted = f"You were right in {sum(before)} of {len(before)} cases before the course and in {sum(after)} of {len(after)} after it."
    return f"{counted} Guessing would be right in one of four. {_in_words(n)} cases are too few to say whether you learned."


def _in_words(n: int) -> str:
    small = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return small[n] if n < len(small) else str(n)


# ---- a case on the learner's text

OWN_FAULTS = {
    "rate too high": "--muon-lr 3 --lr 0.5",
    "rate too low or stopped early": "--muon-lr 5e-4 --lr 1e-4",
    "too little text": "--max-chars 2000",
    "context unused": "--block-size 2 --batch-size 512",
}


def own_training(seed: int, text: str | None) -> tuple[str, list[str]]:
    """A fault, and the arguments of `minigpt train` that make it on this text (None: the default text). The command is not to be shown,
    nor what it prints: both give the answer away."""
    fault = random.Random(seed).choice(sorted(OWN_FAULTS))
    command = ["train", *([text] if text else []), "--preset", "tiny-run", "--max-steps", "200", "--eval-every", "25", "--eval-iters", "16"]
    return fault, [*command, *OWN_FAULTS[fault].split(), "--seed", str(seed), "--json"]


def case_of(run: Run, made: str) -> Case:
    """The case of a finished run that was made sick on purpose. Its answer is this fault, unless `runs diagnose` finds others alone.
    Raises MiniGPTError if the run cannot be read."""
    record, score = run.record, kept_score(run)
    splits = record.corpus.splits if record.corpus else {}
    counted = baselines_of(run, score) if score else None
    shown = symptoms_of(run, counted)
    findings = {finding.finding: finding.evidence for finding in diagnose(shown)}
    answer = made if made in findings or not findings else next(iter(findings))
    best = record.best
    return Case(
        name=run.name,
        answer=answer,
        text=PurePath(record.corpus.label).name[:_TITLE] if record.corpus else "",
        arch=record.arch,
        n_params=record.n_params,
        block_size=run.config.model.block_size,
        train_chars=splits["train"].n_chars if "train" in splits else 0,
        val_chars=splits["val"].n_chars if "val" in splits else 0,
        steps=record.stop_step,
        max_steps=run.config.optim.max_steps,
        epochs=round(shown.epochs[-1], 1) if shown.epochs else 0.0,
        curve=_thinned(shown),
        best=[round(best.nats_per_char, 4), best.step] if best else None,
        measured=shown.measured,
        noise=None if shown.noise is None else round(shown.noise, 4),
        baselines={name: round(value, 4) for name, value in asdict(counted).items() if name != "unigram"} if counted else {},
        context=None if shown.context is None else round(shown.context, 4),
        least_expert=None if shown.least_expert is None else round(shown.least_expert, 4),
        sample=sample_of(run)[:SAMPLE],
        evidence=findings.get(answer, ""),
        mend="" if answer == HEALTHY else commands_for(answer, run)[0],
        others=[name for name in findings if name != answer],
    )


def _thinned(shown: Symptoms) -> list[list[float | None]]:
    """At most six evaluations: the first, the last, the best, and others evenly between them."""
    n = len(shown.steps)
    finite = [i for i in range(n) if shown.val[i] is not None]
    best = min(finite, key=lambda i: shown.val[i] or 0.0, default=0)
    even = {round(i * (n - 1) / (_COLUMNS - 2)) for i in range(_COLUMNS - 1)} if n > _COLUMNS else set(range(n))
    rounded: dict[str, list[Any]] = {name: [None if x is None else round(x, 2) for x in getattr(shown, name)] for name in ("train", "val")}
    return [[shown.steps[i], rounded["train"][i], rounded["val"][i]] for i in sorted(even | ({best} if n else set()))]
