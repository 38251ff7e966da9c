"""Chooses what a person left open, for this text, this time budget and the speed measured here.

Every combination of tokens, shape, window, batch and dropout is given the steps that fit the budget, the law (law.py) says with what loss
it would end, and the smallest wins; of nearly equal ones the one with fewer teachers, then the one that reads the text less often. A
setting that was given stays as it is, and the rest is planned around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch

from minigpt_cli.config import RunConfig, fitting_heads, fitting_width
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.training import clock, memory, precision
from minigpt_cli.training.law import LAW, Training, learning_rates, most_weights
from minigpt_cli.training.machine import Machine, Work, measured
from minigpt_cli.training.planner import choose_device
from minigpt_cli.training.vocabularies import Text, possible

SHAPES = (  # layers, width
    (2, 64),
    (2, 96),
    (3, 96),
    (3, 128),
    (4, 128),
    (4, 160),
    (5, 192),
    (6, 192),
    (6, 256),
    (8, 256),
    (6, 384),
    (8, 384),
    (8, 512),
    (12, 512),
    (12, 768),
)
SMALL_SHAPES = ((1, 16), (1, 32), (2, 32), (2, 48))  # for a --size that is smaller
BLOCKS = (128, 256)  # tokens
BATCHES = (4, 8, 16, 32, 64, 128, 256)  # windows
DROPOUTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
_FEWEST_STEP_TOKENS = 1024  # smaller steps were hardly measured
_FEWEST_PASS_STEPS = 60  # where a pass over a small text would have fewer, smaller steps are planned too
TRAINED_SHARE = 0.92  # of the budget; the rest goes to evaluations, to measuring, and to what the speed differs from the estimate
_MEASURED_SHARE = 0.03  # of the budget, at most
_FEWEST_STEPS = 200  # for fewer the law was seen to be wrong by a tenth of a nat
_TEACHERS = (1, 2)  # a third one taught nothing more
_READ_OFTEN = 2.0  # passes; a text that is read less often cannot be known by heart
_TAUGHT = 1.3  # seconds of a step that asks a teacher, for each of one that does not
_BETWEEN_S = 2.0  # seconds: the final score of a teacher, and the start of the next
_LEAST_TEACHING = 0.7  # of the tokens that would be enough for a teacher; one that has read less teaches little
_NEARLY = 0.002  # nats per character
_NEARLY_SIZE = 0.25  # of a size that was asked for
_LEAST_VAL_WINDOWS = 16
_FEWEST_WINDOWS = 2  # of a split that is cut anew; how many tokens it will have is an estimate
_COPIES = 6  # of the weights while training: gradients, optimizer, average, and what is passing
_KEPT = 30  # values for each channel, layer and token that the backward pass needs
_MEMORY_SHARE = 0.5  # of what is free


class Plan(NamedTuple):
    """The chosen configuration, and why: three lines, and one more each for teachers, a part of the text, and a size that is missed."""

    config: RunConfig
    why: list[str]


class _Candidate(NamedTuple):
    """A possible training, and what is expected of it."""

    config: RunConfig
    text: Text
    training: Training
    tokens_per_s: float
    nats_per_char: float
    can_teach: bool  # whether each of its teachers, if any, learns enough to teach

    @property
    def passes(self) -> float:
        return self.training.tokens / self.training.text_tokens

    @property
    def steps(self) -> float:
        return self.training.tokens / self.training.step_tokens


def this_machine(config: RunConfig, dataset: Dataset) -> Machine:
    """The speed here, with the device, precision and threads that `config` asks for."""
    device, _ = choose_device(config.compute.device)
    number_format, _ = precision.choose(config.compute.precision, device)
    threads = config.compute.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    attention = {"auto": "plain" if device == "cpu" else "sdpa"}.get(config.compute.attention, config.compute.attention)
    here = {"device": device, "precision": number_format, "threads": threads, "attention": attention, "compile": "off"}
    return measured(config.changed(compute=here), dataset, _MEASURED_SHARE * config.optim.time_budget)


def plan(config: RunConfig, given: Collection[str], dataset: Dataset, machine: Machine, size: int = 0, begun: float | None = None) -> Plan:
    """The best of all candidates. `given`: the settings that stay as they are; `size`: the parameters wanted, or 0; `begun`: when the time
    budget began, by time.perf_counter, or None: with the first step."""
    texts = possible(config, given, dataset, clock.spent_s(config, begun))
    return best(config, given, texts, machine, size, clock.spent_s(config, begun))


def best(config: RunConfig, given: Collection[str], texts: Sequence[Text], machine: Machine, size: int = 0, spent_s: float = 0.0) -> Plan:
    """The best of all candidates for a text that is cut in one of several ways, when `spent_s` of the budget are gone."""
    seconds = TRAINED_SHARE * (config.optim.time_budget - spent_s)
    shortest = config.model.block_size if "block_size" in given else BLOCKS[0]
    texts = [text for text in texts if text.is_cut or min(text.train_tokens, text.val_tokens) > _FEWEST_WINDOWS * shortest]
    free = memory.available(torch.device(choose_device(config.compute.device)[0]))
    most = float("inf") if free is None else _MEMORY_SHARE * free
    configs = [(c, text) for text in texts for c in _configs(config, given, text, size) if _bytes(c, text.vocab_size) < most]
    if size:  # no text is cut in a way that misses it further than another would
        far = [abs(_n_params(c.model, text.vocab_size) / size - 1) for c, text in configs]
        allowed = max(_NEARLY_SIZE, min(far, default=0.0))
        configs = [pair for pair, off in zip(configs, far, strict=True) if off <= allowed]
    if not configs:  # the planner says later what does not fit
        return Plan(config, [])
    candidates = [_candidate(c, text, machine, seconds) for c, text in configs]
    if "dropout" not in given:
        often = [c for c in candidates if c.passes > _READ_OFTEN]
        candidates += [_candidate(c.config.changed(model={"dropout": d}), c.text, machine, seconds) for c in often for d in DROPOUTS]
    if "teachers" not in given:
        candidates += [taught for c in candidates if c.passes > _READ_OFTEN for taught in _taught(c, machine, seconds)]
    steps = min(_FEWEST_STEPS, max(c.steps for c in candidates))  # where nothing fits so often: as many as fit
    candidates = [c for c in candidates if c.steps >= steps]
    least = min(c.nats_per_char for c in candidates)
    chosen = min(
        (c for c in candidates if c.nats_per_char <= least + _NEARLY),
        key=lambda c: (c.training.teachers, max(1.0, c.passes), c.training.size),
    )
    has = _n_params(chosen.config.model, chosen.text.vocab_size)
    is_missed = size > 0 and abs(has / size - 1) > _NEARLY_SIZE
    missed = [f"plan: no model of {_count(size)} parameters is known that fits this text and memory: the nearest has {_count(has)}"]
    return Plan(chosen.config, [*(missed if is_missed else []), *_why(chosen)])


def _configs(config: RunConfig, given: Collection[str], text: Text, size: int) -> Iterator[RunConfig]:
    """Every configuration that keeps what is given."""

    def choices(name: str, now: Any, wanted: Sequence[Any]) -> Sequence[Any]:
        return [now] if name in given else wanted

    model, optim = config.model, config.optim
    longest = text.val_tokens // _LEAST_VAL_WINDOWS
    blocks = choices("block_size", model.block_size, [b for b in BLOCKS if b <= longest] or BLOCKS[:1])
    batches = choices("batch_size", optim.batch_size, BATCHES)
    dropout = getattr(model, "dropout", 0.0) if "dropout" in given else 0.0
    fewest = min(_FEWEST_STEP_TOKENS, text.train_tokens / _FEWEST_PASS_STEPS)
    for shape in _shapes(model, given, text, size):
        rates = {name: value for name, value in learning_rates(shape["n_embd"]).items() if name not in given}
        for block, batch in product(blocks, batches):
            if block * batch < fewest and batch != batches[-1] and "block_size" not in given:
                continue
            planned = model.model_copy(update={**shape, "block_size": block, "dropout": dropout})
            yield config.model_copy(update={"model": planned}).changed(data=text.data, optim={"batch_size": batch, **rates})


def _shapes(model: Any, given: Collection[str], text: Text, size: int) -> list[dict[str, int]]:
    """Layers, width and heads, each shape once; with `size` (and so no limit) only the one whose parameters are nearest to it."""
    found: list[dict[str, int]] = []
    for layers, width in (*SMALL_SHAPES, *SHAPES) if size else SHAPES:
        layers = model.n_layer if "n_layer" in given else layers
        width = model.n_embd if "n_embd" in given else width
        if "n_head" in given and "n_embd" not in given and width % (2 * model.n_head):
            width = fitting_width(width, model.n_head)
        heads = model.n_head if "n_head" in given else fitting_heads(width, model.kv_heads if "n_kv_head" in given else 1)
        shape = {"n_layer": layers, "n_embd": width, "n_head": heads}
        if heads and shape not in found and width % heads == 0 and (width // heads) % 2 == 0:
            found.append(shape)
    if not size:
        most = most_weights(text.train_tokens, text.letters)
        return [s for s in found if 12 * s["n_layer"] * s["n_embd"] ** 2 <= most] or found[:1]
    return [min(found, key=lambda s: abs(_n_params(model.model_copy(update=s), text.vocab_size) / size - 1))]


def _n_params(model: Any, vocab_size: int) -> int:
    """The parameters without gains."""
    C = model.n_embd
    return model.n_layer * (4 * C * C + 3 * C * model.hidden) + (1 if model.tie_weights else 2) * C * vocab_size  # type: ignore[no-any-return]


def _bytes(config: RunConfig, vocab_size: int) -> int:
    """The memory that a step needs, about."""
    model: Any = config.model
    kept = config.optim.batch_size * model.block_size * (_KEPT * model.n_layer * model.n_embd + 3 * vocab_size)
    return int(4 * (_COPIES * _n_params(model, vocab_size) + kept))


def _taught(alone: _Candidate, machine: Machine, seconds: float) -> Iterator[_Candidate]:
    """The same training with teachers, where they have the time to learn what they teach."""
    for n in _TEACHERS:
        taught = _candidate(alone.config.changed(distil={"teachers": n}), alone.text, machine, seconds)
        if taught.can_teach:
            yield taught


def _candidate(config: RunConfig, text: Text, machine: Machine, seconds: float) -> _Candidate:
    """The training of `config` for so many seconds, in which the text is cut too, or for as long as it learns something."""
    work = Work.of(config.model, config.optim.windows, text.vocab_size)  # type: ignore[arg-type]
    training = Training.of(config, text)
    tokens_per_s = training.step_tokens / machine.step_s(work)
    *teachers, (training, _) = _chain(training, seconds - text.prepared_s, tokens_per_s, config.distil.teacher_time)
    can_teach = all(teacher.tokens >= _LEAST_TEACHING * LAW.enough_tokens(teacher) for teacher, _ in teachers)
    return _Candidate(config, text, training, tokens_per_s, LAW.nats_per_char(training), can_teach)


def _chain(training: Training, seconds: float, tokens_per_s: float, teacher_time: float) -> list[tuple[Training, float]]:
    """Teachers and run with the tokens that each reads in `seconds` for all, and the seconds that are over when it ends."""
    done, used = [], 0.0
    if training.teachers:
        done = _chain(training._replace(teachers=training.teachers - 1), teacher_time * seconds, tokens_per_s, teacher_time)
        used, tokens_per_s = done[-1][1] + _BETWEEN_S, tokens_per_s / _TAUGHT
    tokens = max(1.0, min((seconds - used) * tokens_per_s, LAW.enough_tokens(training)))
    return [*done, (training._replace(tokens=tokens), used + tokens / tokens_per_s)]


def _why(chosen: _Candidate) -> list[str]:
    """What was chosen and why, for a person."""
    model: Any = chosen.config.model
    passes = chosen.passes
    read = f"{_many(passes)} times" if passes >= 1.05 else "in part" if passes < 0.95 else "once"
    size = _count(_n_params(model, chosen.text.vocab_size))
    n_tokens = _count(chosen.training.text_tokens)
    tokens = (
        f"{n_tokens} tokens" if chosen.text.tokenizer != "bpe" else f"{n_tokens} byte pairs of {chosen.text.chars_per_token:.1f} characters"
    )
    dropout = f"dropout {model.dropout:g}, because" if model.dropout else "no dropout:"
    budget, teachers = _time(chosen.config.optim.time_budget), chosen.training.teachers
    whom = "each to teach the next" if teachers > 1 else "to teach this one"
    used = f"plan: {_count(chosen.text.max_chars)} characters from all over this text are used: byte pairs of all of it would take too long"
    taught = [f"plan: {_number(teachers, 'model')} trained first, {whom}: alone it would know this text by heart too soon"]
    return [
        f"plan: {size} parameters, {_number(model.n_layer, 'layer')}, {model.n_embd} wide: expected to learn most within {budget}, "
        f"at about {_count(chosen.tokens_per_s / (_TAUGHT if teachers else 1.0))} tokens/s",
        *([used] if chosen.text.max_chars else []),
        f"plan: {dropout} {'this part' if chosen.text.max_chars else 'this text'} of {tokens} is read {read}",
        f"plan: batches of {_number(chosen.config.optim.batch_size, 'window')} of {model.block_size} tokens: smaller ones learn more "
        "from a text, larger ones are faster",
        *(taught if teachers else []),
    ]


def _count(n: float) -> str:
    value, unit = next(((n / s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if n >= 0.9995 * s), (n, ""))
    return f"{value:.3g} {unit}".strip()


def _many(n: float) -> str:
    return f"{n:.0f}" if n >= 9.95 else f"{n:.1f}"


def _time(seconds: float) -> str:
    value, unit = next(((seconds / s, unit) for s, unit in ((3600, "hour"), (60, "minute")) if seconds >= 1.5 * s), (seconds, "second"))
    return _number(value, unit)


def _number(n: float, what: str) -> str:
    return f"{n:.3g} {what}{'s' * (f'{n:.3g}' != '1')}"
