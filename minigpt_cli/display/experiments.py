"""The screens of an experiment: the list, what it is about to do, and its answer as a table and a paragraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_cli.display import console, format
from minigpt_cli.display.comparison import scope_lines, verdict_sentence
from minigpt_cli.display.tables import Column, print_table
from minigpt_cli.display.terminal_chart import Curve
from minigpt_cli.escaping import one_line

if TYPE_CHECKING:
    from minigpt_cli.evaluation.comparison import Pair
    from minigpt_cli.evaluation.data_law import DataLaw, Value
    from minigpt_cli.evaluation.experiments import Writing
    from minigpt_cli.evaluation.overfitting import Memorisation
    from minigpt_cli.events import Evaluated
    from minigpt_cli.experiments.catalog import Experiment
    from minigpt_cli.generation.sampling import Sampling


@dataclass(frozen=True)
class Chart:
    """Curves and what their axes mean."""

    curves: Sequence[Curve]
    x: str
    y: str


@dataclass(frozen=True)
class Answer:
    """What an experiment found."""

    question: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    sentences: Sequence[str]
    scores: Sequence[tuple[str, float, tuple[float, float]]]  # nats per character of each recipe, with the 95 % interval
    chart: Chart
    next: str  # a command


def print_answer(found: Answer) -> None:
    """Print the table, the paragraph and the next command to stdout."""
    print_table(found.columns, found.rows)
    console.write("")
    console.write_wrapped(one_line(" ".join(found.sentences)))
    console.write("")
    console.write(f"next    {one_line(found.next)}")


def print_experiment(found: Experiment, length: str) -> None:
    """One entry of the list of experiments: name and length, and the question below."""
    console.write(f"{found.name:<10} {length}")
    console.write_wrapped(f"    {found.question}", "    ")


def print_costs(experiment: Experiment, rows: Sequence[tuple[str, int, int, float, float]], n_seeds: int, total_s: float) -> None:
    """Print what the runs would cost: recipe, parameters, steps, milliseconds of a step, and seconds of a run."""
    columns = [Column(""), *(Column(name, right=True) for name in ("parameters", "steps", "a step", "time of a run"))]
    cells = [[label, f"{n:,}", f"{steps:,}", f"{ms:.1f} ms", format.duration(s)] for label, n, steps, ms, s in rows]
    print_table(columns, cells)
    seeds = f", {n_seeds} seeds of each" if n_seeds > 1 else ""
    console.write("")
    console.write_labelled("runs", f"{n_seeds * len(rows)}{seeds}")
    console.write_labelled("time", f"about {format.duration(total_s)} in all, on this machine as it is now")


# ---- sentences; every number has its unit


def pair_sentences(pairs: Sequence[Pair]) -> list[str]:
    """All verdicts, and what they are about."""
    return [*(f"{verdict_sentence(pair, ' nats per character', 'a statistical tie')}." for pair in pairs), *scope_lines(pairs)]


def by_heart_sentences(found: Memorisation, reached: Evaluated | None, limit: float, to_find: float) -> list[str]:
    """Whether the text was learned by heart, and what that means for new text and for what is written. `to_find`: nats per character of
    a window that a model needs to find its place in the text."""
    loss = f"The training loss ended at {found.train_nats_per_char:.3f} nats per character"
    if found.train_nats_per_char < limit:
        first = f", below {limit:g} from step {reached.step:,} on" if reached else ""
        lines = [f"{loss}{first}: the model learned the text by heart, so model and training work."]
    else:
        place = f"About {to_find:.3f} of them go into finding which part of the text a window shows, less in longer windows (--block-size)."
        lines = [f"{loss}, not below {limit:g}: the model did not learn the text by heart. Train longer (--max-steps).", place]
    new = f"On new text the same weights need {found.val_nats_per_char:.3f} nats per character"
    copy = f"The longest passage of the training text in what it writes has {found.sampled.longest:,} characters, in unseen text"
    return [*lines, f"{new}: what was learned by heart does not help there.", f"{copy} {found.unseen.longest:,}."]


def dropout_sentences(modes: Mapping[str, tuple[float, float]]) -> list[str]:
    """What the mode of the model does to the training loss, at the highest rate: nats per token with dropout on and off, by recipe."""
    label, (on, off) = list(modes.items())[-1]
    return [
        f"With {label} the training loss is {on:.3f} nats per token in training mode and {off:.3f} in evaluation mode: "
        "the same weights, so compare training and validation in evaluation mode only."
    ]


def law_sentences(law: DataLaw) -> list[str]:
    """The law, what twice the text would bring, and how far to trust it."""
    law_text = f"{law.floor.mean:.2f} + {law.scale:.3g} / n^{law.exponent.mean:.3f} nats per character, n in characters of training text"
    lines = [
        f"The loss falls as {law_text}.",
        f"The exponent is {_interval(law.exponent)}, and the floor of this model and training {_interval(law.floor)} nats per character.",
        f"Twice the text ({2 * law.largest:,} characters) would lower the loss by {_interval(law.doubled, -1)} nats per character.",
        "That is an extrapolation: nothing was trained on so much.",
    ]
    if not law.is_determined:
        lines.append("These losses do not determine the exponent: use more text, more seeds, or longer runs.")
    if law.misfit > 3 * law.noise:
        missed = f"The losses are {law.misfit:.3f} nats per character from the law, and chance explains {law.noise:.3f}"
        lines.append(f"{missed}: the law is only a summary here, and its intervals are too narrow.")
    return lines


def _interval(value: Value, sign: int = 1) -> str:
    low, high = sorted((sign * value.low, sign * value.high))
    return f"{sign * value.mean:.3f} (95 %: {low:.3f} to {high:.3f})"


def rate_sentences(rates: Sequence[tuple[str, float | None]], broke: Sequence[str]) -> list[str]:
    """The best rate, those that are tied or near, and those at which training broke."""
    known = [(label, nats) for label, nats in rates if nats is not None and label not in broke]
    if not known:
        return ["Training broke at every rate: try smaller ones."]
    best, least = min(known, key=lambda pair: pair[1])
    near = [label for label, nats in known if nats - least < 0.1 and label != best]
    lines = [f"{best} ends lowest, at {least:.3f} nats per character."]
    lines += (
        [f"Within 0.1 nats per character of it: {', '.join(near)}."] if near else ["No other rate is within 0.1 nats per character of it."]
    )
    lines += (
        [f"Training breaks at {', '.join(broke)}: the last loss is not finite, or above that of guessing every token alike."]
        if broke
        else []
    )
    if best == rates[0][0] or best == rates[-1][0]:
        lines.append("The best rate is at the end of the range: one beyond may be better.")
    return [*lines, "One seed and few steps say which rates work; which is best takes longer runs (--max-steps)."]


WRITING_COLUMNS = (
    Column("temperature"),
    Column("top-k"),
    Column("nats/char", right=True),
    Column("distinct words", 1, right=True),
    Column("repeated", 1, right=True),
    Column("copied", 2, right=True),
    Column("longest copy", 3, right=True),
)


def writing_row(sampling: Sampling | None, found: Writing) -> list[str]:
    """The cells of one setting under WRITING_COLUMNS; of unseen text without a setting."""
    shares = [f"{share:.0%}" for share in (found.distinct_words, found.repeated, found.copied)]
    setting = ["unseen text", ""] if sampling is None else [f"{sampling.temperature:g}", str(sampling.top_k or "all")]
    return [*setting, format.loss(found.nats_per_char), *shares, f"{found.longest_copy:,} characters"]


def writing_sentences(labels: Sequence[str], found: Sequence[Writing], copy: int) -> list[str]:
    """Which settings are at the ends of each measure, beside unseen text, which is the last of `found`."""
    written, unseen = list(zip(labels, found, strict=False)), found[-1]
    label, most = min(written, key=lambda pair: _nats(pair[1]))
    lines = [f"The most probable text comes from {label}: {_nats(most):.3f} nats per character under the model."]
    label, most = max(written, key=lambda pair: pair[1].repeated)
    again = f"of its word triples {most.repeated:.0%} stood before, of those of unseen text {unseen.repeated:.0%}"
    lines += [f"The text that repeats itself most comes from {label}: {again}."] if most.repeated else ["No text repeats three words."]
    label, most = max(written, key=lambda pair: pair[1].copied)
    passages = f"passages of {copy} characters and more from the training text"
    share = f"{most.copied:.0%} of its characters are in {passages} (unseen text: {unseen.copied:.0%})"
    lines += [f"Most is copied with {label}: {share}."] if most.copied else [f"No setting copies {passages}."]
    label, most = min(written, key=lambda pair: abs(_nats(pair[1]) - _nats(unseen)))
    near = f"nearest to it is what the model writes with {label} ({_nats(most):.3f})"
    return [*lines, f"Unseen text has {_nats(unseen):.3f} nats per character under the model; {near}."]


def _nats(found: Writing) -> float:
    return found.nats_per_char or 0.0
