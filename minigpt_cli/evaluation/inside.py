"""Everything that `runs look` measures of one run, as a frozen record. torch is imported only where a model is read.

All numbers are of the first 16,384 characters of the run's validation text. They are kept beside the run, by the hash of its weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minigpt_cli.bounds import NATS_LIMIT, Count, Nats
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.evaluation.cache import make_folder
from minigpt_cli.evaluation.comparison import KINDS, character_kinds, position_ranges, verdict_of
from minigpt_cli.evaluation.eval_target import Target, score_key
from minigpt_cli.evaluation.evaluate_run import dataset_of
from minigpt_cli.evaluation.sample import Floats, Sample, sample_of
from minigpt_cli.evaluation.scores import Score
from minigpt_cli.evaluation.statistics import Estimate, holm, mean_interval, paired_test
from minigpt_cli.runstore.directory import Run
from minigpt_cli.storage.atomic_io import read_json, write_atomic

if TYPE_CHECKING:
    from minigpt_cli.checkpoints import Loaded
    from minigpt_cli.evaluation.attention_roles import Attended, Copies, Watched

_VERSION = 1

Share = Annotated[float, Field(ge=0, le=1)]
Delta = Annotated[float, Field(ge=-NATS_LIMIT, le=NATS_LIMIT)]
Interval = tuple[Delta, Delta]
Progress = Callable[[int, int], None]
"""Called with the work done and all the work."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Attends(_Record):
    """How much of a head's attention goes to one kind of place."""

    share: float
    even: float  # what even attention to all of the past would give


class PartCost(_Record):
    """What a part is worth: nats per character without it minus with it; positive: it helps."""

    part: str  # "head 1.3", "mlp 0", "layer 2" or "positions"
    delta_nats_per_char: Delta
    ci95: Interval
    p_holm: Share  # adjusted for all parts
    measurable: bool
    roles: dict[str, float] = {}  # of a head: the roles that it clearly has, with their shares
    attends: dict[str, Attends] = {}  # of a head: every role


class ContextLoss(_Record):
    """The loss of the same characters when they follow so many tokens."""

    tokens: Count
    nats_per_char: Nats
    ci95: Interval
    short: bool  # measurably worse than with the whole window


class KindLoss(_Record):
    """The loss of a kind of characters, or of those at some places in the window."""

    kind: str
    share: Share  # of all characters
    nats_per_char: Nats
    ci95: Interval
    share_of_loss: Share


class LayerExperts(_Record):
    """Which experts of a layer serve which kinds of characters."""

    layer: Count
    shares: list[Share]  # of all choices, by expert
    by_kind: dict[str, list[Share]]  # of the choices for characters of a kind, by expert
    information: float  # nats that a character's kind tells about its expert; 0: they are independent


class Dropout(_Record):
    """Nats per token of the same text, read several times with dropout on and off."""

    on: list[Nats]
    off: list[Nats]


class Copying(_Record):
    """Nats per token of random strings, and of the same strings right after them."""

    first: Nats
    second: Nats


class Inside(_Record):
    """What was measured inside one model."""

    n_chars: Count
    nats_per_char: Nats
    ci95: Interval
    text_sha256: str  # of the sample
    parts: list[PartCost]
    context: list[ContextLoss]
    kinds: list[KindLoss]
    positions: list[KindLoss]
    experts: list[LayerExperts] = []
    dropout: Dropout | None = None
    copying: Copying | None = None


def look(run: Run, *, fresh: bool = False, advance: Progress = lambda d, t: None) -> Inside:
    """What is inside the run's best model, or the checkpoint that was named with it: kept from before, else measured and kept. Raises
    UsageError where its text is missing.

    `advance` is called while the model is read; an error that it raises ends the work."""
    with _advice():
        path = score_key(run, Target(ckpt=run.checkpoint or "best")).path(run.dir)
    path = path.with_name(f"inside-{path.stem}-{_VERSION}.json")
    if not fresh:
        with suppress(MiniGPTError, ValidationError):
            return Inside.model_validate(read_json(path))
    from minigpt_cli import checkpoints

    with _advice():
        dataset = dataset_of(run)
    loaded = checkpoints.load(run, run.checkpoint or "best")
    found = measure(loaded, sample_of(dataset, run.config.model.block_size), advance)
    if loaded.record.files == run.record.files:  # else an older generation was read, which the key does not name
        with suppress(MiniGPTError):  # a read-only folder: measured again next time
            make_folder(path.parent)
            write_atomic(path, json.dumps(found.model_dump(mode="json"), allow_nan=False) + "\n")
    return found


@contextmanager
def _advice() -> Iterator[None]:
    """Say of a text that is missing what is wrong here; `eval` advises to give another one."""
    try:
        yield
    except UsageError as error:
        what = str(error).removesuffix(": give a text with --data FILE")
        raise UsageError(f"{what}: runs look needs the text that a run was trained on") from error


def measure(loaded: Loaded, sample: Sample, advance: Progress = lambda done, total: None) -> Inside:
    """Everything about a loaded model, on this sample."""
    from minigpt_cli.evaluation import attention_roles, part_costs

    model = loaded.model
    has_blocks = bool(part_costs.parts_of_model(model))
    total, done = part_costs.work(model, sample) + has_blocks * len(sample.is_text), 0

    def told(tokens: int) -> None:
        nonlocal done
        done += tokens
        advance(min(done, total), total)

    watched: Watched | None = None
    copies: Copies | None = None
    if has_blocks:
        watched = attention_roles.watch_sample(model, sample, loaded.tokenizer.token_bytes(), told)
        copies = attention_roles.read_copies(model, sample)
    whole, without = part_costs.part_losses(model, sample, watched.means if watched else {}, told)
    if not all(np.isfinite(nats).all() for nats in (whole, *without.values())):
        raise MiniGPTError("the model's loss is not finite: its weights are damaged, or it diverged")
    chars_per_token, by_length = part_costs.context_losses(model, sample, told)
    score = sample.score(whole)
    kinds, place = character_kinds(score.text.decode(), score.parts.first if score.parts else None), score.char_position
    places = position_ranges(int(place.max()))
    return Inside(
        n_chars=score.n_chars,
        nats_per_char=score.nats_per_char,
        ci95=score.ci95,
        text_sha256=score.text_sha256,
        parts=_part_costs(sample, score, without, [found.attends for found in (watched, copies) if found is not None]),
        context=_context(by_length, chars_per_token),
        kinds=_losses(score, [(kind, kinds == i) for i, kind in enumerate(KINDS)]),
        positions=_losses(score, [(name, (place >= low) & (place < high)) for name, low, high in places]),
        experts=_experts(watched.experts if watched else []),
        dropout=_dropout(loaded, sample),
        copying=Copying(first=copies.first, second=copies.second) if copies else None,
    )


def _part_costs(sample: Sample, score: Score, without: dict[str, Floats], attended: Sequence[Attended]) -> list[PartCost]:
    from minigpt_cli.evaluation.attention_roles import roles_of

    tests = {part: paired_test(sample.per_character(nats), score.char_nats) for part, nats in without.items()}
    adjusted = holm([test.p_value for test in tests.values()])
    found = []
    for (part, test), p in zip(tests.items(), adjusted, strict=True):
        kind, _, place = part.partition(" ")
        attends = {role: share for each in attended for role, share in each.get(place, {}).items()} if kind == "head" else {}
        found.append(
            PartCost(
                part=part,
                delta_nats_per_char=test.mean,
                ci95=(test.low, test.high),
                p_holm=p,
                measurable=_is_measurable(test, p),
                roles=roles_of(attends),
                attends={role: Attends(share=share, even=even) for role, (share, even) in attends.items()},
            )
        )
    return found


def _is_measurable(test: Estimate, p_adjusted: float) -> bool:
    return verdict_of(test, p_adjusted) != "indistinguishable"


def _context(by_length: dict[int, Floats], chars_per_token: float) -> list[ContextLoss]:
    """The losses by length, the longest last; shorter ones are compared with it, adjusted together."""
    if not by_length:
        return []
    *shorter, longest = by_length
    tests = {length: paired_test(by_length[length], by_length[longest]) for length in shorter}
    adjusted = dict(zip(shorter, holm([test.p_value for test in tests.values()]), strict=True))
    found = []
    for length, nats in by_length.items():
        each = mean_interval(nats / chars_per_token)
        short = length in tests and tests[length].mean > 0 and _is_measurable(tests[length], adjusted[length])
        found.append(ContextLoss(tokens=length, nats_per_char=each.mean, ci95=(each.low, each.high), short=short))
    return found


def _losses(score: Score, places: Iterable[tuple[str, npt.NDArray[np.bool_]]]) -> list[KindLoss]:
    """The loss at places of the text, given by name; those without a character are left out."""
    found, total = [], float(score.char_nats.sum()) or 1.0
    for name, mask in places:
        if mask.any():
            nats = score.char_nats[mask]
            each = mean_interval(nats)
            shares = {"share": float(mask.mean()), "share_of_loss": min(1.0, float(nats.sum()) / total)}
            found.append(KindLoss(kind=name, nats_per_char=each.mean, ci95=(each.low, each.high), **shares))
    return found


def _experts(counts: Iterable[Floats]) -> list[LayerExperts]:
    """Shares of the experts by kind of character, from their counts (kinds + 1, E) in each layer."""
    found = []
    for layer, table in enumerate(counts):
        joint = table[:-1] / max(1.0, table[:-1].sum())  # the last row is of tokens that are no characters
        independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        some = joint > 0
        information = float((joint[some] * np.log(joint[some] / independent[some])).sum())
        by_kind = {kind: (row / row.sum()).tolist() for kind, row in zip(KINDS, joint, strict=True) if row.sum()}
        found.append(LayerExperts(layer=layer, shares=joint.sum(0).tolist(), by_kind=by_kind, information=max(0.0, information)))
    return found


def _dropout(loaded: Loaded, sample: Sample) -> Dropout | None:
    from minigpt_cli.evaluation.part_costs import WINDOWS_READ, dropout_readings

    if not getattr(loaded.config.model, "dropout", 0):
        return None
    on, off = dropout_readings(loaded.model, sample.rows[:WINDOWS_READ])
    return Dropout(on=on, off=off)
