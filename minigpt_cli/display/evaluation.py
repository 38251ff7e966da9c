"""The result of `eval` on the terminal: the score with its interval, baselines without a neural network, and memorisation."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt_cli.display import console, format
from minigpt_cli.display.generation import expectation
from minigpt_cli.escaping import one_line, printable

if TYPE_CHECKING:
    from minigpt_cli.evaluation.baselines import Baselines
    from minigpt_cli.evaluation.evaluate_run import Evaluation
    from minigpt_cli.evaluation.memorisation import Copies
    from minigpt_cli.evaluation.overfitting import Memorisation
    from minigpt_cli.evaluation.surprise import Surprising

_BAR = 32  # characters
_COLUMNS = 60


def print_evaluation(found: Evaluation, what: str, baselines: Baselines | None, *, stride: int, recent: int) -> None:
    """Print the score of `what` (a split or a file) to stdout."""
    score = found.score
    ppl = f"{score.perplexity:.2f}" if math.isfinite(score.perplexity) else "infinite"
    what = one_line(what) + format.parts_alone(score.n_answers, score.n_documents)
    lines = [
        f"run     {one_line(found.run.name)}, {format.checkpoint(found.ckpt, found.step)}",
        f"text    {what}: {score.n_chars:,} characters, {score.n_tokens:,} tokens; {format.windows(stride, recent)}",
        f"score   {score.nats_per_char:.4f} nats per character (95 %: {format.interval(score.ci95)})",
        f"        {score.nats_per_token:.4f} nats per token; {score.bits_per_byte:.4f} bits per byte; perplexity {ppl} per token",
    ]
    if what.endswith("wikitext-2"):  # of which published figures are per word
        lines.append(f"        perplexity {score.perplexity_per_word:.2f} per word, line ends counted as words")
    if score.n_documents is not None:
        lines.append(f"        {score.nats_per_char_without_ends:.4f} nats per character without the ends of documents")
    for line in lines:
        console.write_wrapped(line, " " * 8)
    if baselines is not None:
        _print_baselines(score.nats_per_char, baselines)


def _print_baselines(model: float, baselines: Baselines) -> None:
    rows = [("this model", model), ("xz -9", baselines.xz), ("character pairs", baselines.bigram), ("characters", baselines.unigram)]
    rows += [("uniform", baselines.uniform)]
    most = max(value for _, value in rows)
    console.write("")
    console.write_wrapped("nats per character, beside baselines without a neural network (they saw the training split too)")
    colour = console.use_colour(sys.stdout)
    for name, value in sorted(rows, key=lambda row: row[1]):
        line = f"  {name:<16} {value:7.4f}  {format.bar(value / most, _BAR)}"
        console.write(f"\x1b[1;32m{line}\x1b[0m" if colour and name == "this model" else line)


def print_test_gap(selected: float, test: float) -> None:
    """Print the difference between the test score and the validation score that selected the checkpoint."""
    gap = f"{test - selected:+.4f} nats per character from {selected:.4f}"
    console.write_labelled("gap", f"{gap}, the validation score that chose this checkpoint")


def print_surprising(passages: Sequence[Surprising]) -> None:
    """Print the most surprising passages, each with what was expected in its most surprising place, in lines of at most 60 columns."""
    from rich.cells import set_cell_size

    console.write("\nmost surprising\nnats/char  place            passage")
    for passage in passages:
        shown = f"{passage.nats_per_char:9.2f}  {passage.place:<15}  {_one_line(passage.text)}"
        peak = passage.peak
        for line in (shown, " " * 11 + expectation(peak.token, peak.probability, peak.expected[:3])):
            console.write(set_cell_size(line, _COLUMNS).rstrip())


def print_memorisation(found: Memorisation) -> None:
    """Print the gap between training and validation text, and the lengths of the copies in generated text."""
    low, high = found.gap_ci95
    lines = [
        "\nmemorisation",
        f"  gap     {found.gap:+.4f} nats per character (95 %: {low:+.4f} to {high:+.4f}):",
        f"          validation {found.val_nats_per_char:.4f}, end of the training text {found.train_nats_per_char:.4f}",
        f"  copies  of the training text in {found.n_samples} samples, {found.sample_chars:,} characters, temperature 1",
        f"    written by the model   longest {found.sampled.longest:>4}, mean {found.sampled.mean:.1f}",
        f"      {_quoted(found.sampled)}",
        f"    in unseen real text    longest {found.unseen.longest:>4}, mean {found.unseen.mean:.1f}",
        f"      {_quoted(found.unseen)}",
    ]
    if found.written is not None:
        n, ended, known = found.written.documents, found.written.ended, found.written.known
        lines.append(
            f"  whole   {ended} of {n} documents end by themselves; {known} of them are in the training split, {ended - known} are new"
        )
    console.write("\n".join(lines))


def _quoted(found: Copies) -> str:
    text = found.longest_text if len(found.longest_text) <= 60 else found.longest_text[:57] + "…"
    return f"“{_one_line(text)}”"


def _one_line(text: str) -> str:
    return printable(text.replace("\r\n", "⏎").replace("\n", "⏎"), keep="")
