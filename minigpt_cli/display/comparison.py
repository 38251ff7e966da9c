"""A comparison on the terminal: scores, verdicts as sentences, the differences of the sides, and their samples side by side."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_cli.display import console, format
from minigpt_cli.display.charts import chart_on_screen
from minigpt_cli.display.run_tables import print_differences
from minigpt_cli.display.tables import PAIR, Column, as_markdown, print_columns, print_table
from minigpt_cli.display.terminal_chart import Curve
from minigpt_cli.escaping import markdown, one_line, printable, unix_lines

if TYPE_CHECKING:
    from rich.text import Text

    from minigpt_cli.evaluation.comparison import Pair, Part, Passage, Side
    from minigpt_cli.evaluation.seeds import Outlook

_SOME, _MUCH = 0.3, 1.0  # nats


@dataclass(frozen=True)
class Compared:
    """All results of `compare` that are shown."""

    text: str  # name of the text that was scored
    sides: Sequence[Side]
    costs: Sequence[tuple[int, float]]  # parameters and mean seconds of training of each side
    pairs: Sequence[Pair]
    differences: Sequence[tuple[str, Sequence[str]]]  # settings that differ, a value for each side
    kinds: Sequence[Part]
    positions: Sequence[Part]
    passages: Sequence[Passage]  # of the first two sides
    curves: Sequence[Curve] = ()
    x: str = "steps"  # the horizontal axis of the curves
    prompt: str | None = None
    samples: Sequence[tuple[str, str]] = ()  # the continuation of the prompt by each side

    @property
    def names(self) -> list[str]:
        """The names of the sides."""
        return [side.name for side in self.sides]


def print_comparison(found: Compared) -> None:
    """Print all sections."""
    console.write_labelled("text", found.text)
    _heading("settings that differ")
    print_differences(found.names, found.differences)
    _heading("scores")
    rows = score_rows(found)
    print_table(SCORE_COLUMNS, rows, styles=["a" if row[0] == found.names[0] else "b" for row in rows] if len(rows) == 2 else ["best"])
    _print_parts("by kind of character, nats per character", found.names, found.kinds)
    _print_parts("by tokens before it in the window, nats per character", found.names, found.positions)
    _print_passages(found.names[0], found.names[1], found.passages)
    if chart := chart_on_screen(found.curves, height=14):
        _heading(f"validation loss, nats per character, against {found.x}")
        console.write(chart)
    if found.samples:
        _print_samples(found.prompt or "", found.samples)
    _print_verdicts(found.names, found.pairs)


def print_comparison_markdown(found: Compared) -> None:
    """Print scores and verdicts as Markdown to paste."""
    rows = score_rows(found)
    used = [i for i in range(len(SCORE_COLUMNS)) if i == 0 or any(row[i] for row in rows)]
    columns = [SCORE_COLUMNS[i] for i in used]
    table = as_markdown(columns, [[row[i] for i in used] for row in rows])
    lines = [f"- {markdown(verdict_sentence(pair))}" for pair in found.pairs] + ["", *map(markdown, scope_lines(found.pairs))]
    console.write(f"{table}\n\n" + "\n".join(lines) + f"\n\nOn the {markdown(found.text)}.")


def _heading(text: str) -> None:
    """Print the title of a section."""
    if console.is_terminal(sys.stdout):
        from rich.text import Text

        console.stdout().print(Text(f"\n{text}", style="bold"))
    else:
        console.write(f"\n{text}")


SCORE_COLUMNS = (
    Column("", most=36),
    Column("nats/char", right=True),
    Column("95 %", right=True),
    Column("seeds", 2, right=True),
    Column("sd", 3, right=True),
    Column("nats/token", 6, right=True),
    Column("bits/byte", 5, right=True),
    Column("params", 1, right=True),
    Column("time", 4, right=True),
)


def score_rows(found: Compared) -> list[list[str]]:
    """A row for each side under SCORE_COLUMNS, best first."""
    rows = []
    ranked = sorted(zip(found.sides, found.costs, strict=True), key=lambda entry: entry[0].group.mean)
    for side, (n_params, elapsed_s) in ranked:
        group, scores = side.group, side.scores
        alone = len(scores) == 1
        rows.append(
            [
                side.name,
                format.loss(group.mean),
                format.plus_minus(scores[0].nats_per_char, scores[0].ci95) if alone else format.plus_minus(group.mean, side.ci95),
                "" if alone else str(group.n),
                "" if group.std is None else f"{group.std:.4f}",
                format.loss(math.fsum(score.nats_per_token for score in scores) / len(scores)),
                format.loss(math.fsum(score.bits_per_byte for score in scores) / len(scores)),
                format.count(n_params),
                format.duration(elapsed_s),
            ]
        )
    return rows


def verdict_sentence(pair: Pair, unit: str = "", tie: str = "indistinguishable") -> str:
    """The verdict on one pair as a sentence; `unit` follows the difference, and `tie` is what two sides are that chance may part."""
    a, b, test = one_line(pair.a), one_line(pair.b), pair.test
    p = f"p = {pair.p_holm:.2g}" if pair.p_holm > 0.0004 else "p < 0.0005"
    if pair.verdict == "indistinguishable":
        return f"{a} and {b} are {tie}: {test.mean:+.4f}{unit} (95 %: {test.low:+.4f} to {test.high:+.4f}; {p})"
    better, worse, sign = (a, b, -1) if pair.verdict == "a_better" else (b, a, 1)
    low, high = sorted((sign * test.low, sign * test.high))
    return f"{better} is better than {worse} by {abs(test.mean):.4f}{unit} (95 %: {low:.4f} to {high:.4f}; {p})"


def outlook_sentence(found: Outlook) -> str:
    """How much more data would decide an undecided pair; empty for a decided pair, or if the amount is not known."""
    if found.further_seeds:
        return f"about {found.further_seeds} further seed{'s' * (found.further_seeds > 1)} of each would show a difference of this size"
    if found.text_factor is not None:
        return f"no number of seeds would show a difference this small: it needs about {found.text_factor:.0f} times as much text"
    return ""


def _print_verdicts(names: Sequence[str], pairs: Sequence[Pair]) -> None:
    """Print every verdict and its scope, last of all, where it is seen; on a terminal with the names in their colours."""
    from rich.padding import Padding
    from rich.text import Text

    _heading("verdict, nats per character" + (f" (p-values adjusted for {len(pairs)} pairs, Holm)" if len(pairs) > 1 else ""))
    on_terminal = console.is_terminal(sys.stdout)
    for pair in pairs:
        if on_terminal:
            sentence = Text(verdict_sentence(pair), style="bold")
            for name, colour in zip(names, PAIR, strict=False):
                sentence.highlight_regex(rf"(?<!\w){re.escape(one_line(name))}(?!\w)", colour)  # not the s of "is"
            console.stdout().print(Padding(sentence, (0, 0, 0, 2)))
        else:
            console.write("  " + verdict_sentence(pair))
        if pair.outlook is not None and (outlook := outlook_sentence(pair.outlook)):
            console.write_wrapped("    " + outlook, "    ")
    for line in scope_lines(pairs):
        console.write_wrapped("  " + line, "  ")


def scope_lines(pairs: Sequence[Pair]) -> list[str]:
    """The scope of the verdicts: weights or recipes."""
    questions = {pair.question for pair in pairs}
    lines = []
    if "weights" in questions:
        lines.append("This is about these weights on this kind of text, not about recipes: those take several seeds (train --seeds 3).")
    if "recipes" in questions:
        lines.append("This is about the recipes: the interval includes new seeds and new text of this kind.")
    return lines


def part_rows(parts: Sequence[Part]) -> list[list[str]]:
    """Name, share and the score of each side, for each part of the text."""
    return [[p.name, f"{p.share:.1%}", *(format.loss(None if math.isnan(v) else v) for v in p.nats_per_char)] for p in parts]


def _print_parts(title: str, names: Sequence[str], parts: Sequence[Part]) -> None:
    """Print nats per character by part of the text, a column for each side; with two sides also the difference."""
    two = len(names) == 2
    columns = [Column(""), Column("share", 1, right=True), *(Column(one_line(name), right=True, most=24) for name in names)]
    columns += [Column("a − b", right=True)] if two else []
    rows = part_rows(parts)
    for row, part in zip(rows, parts, strict=True):
        difference = part.nats_per_char[0] - part.nats_per_char[1] if two else math.nan
        row += [("" if math.isnan(difference) else f"{difference:+.4f}")] if two else []
    _heading(title)
    print_table(columns, rows)


def _print_passages(a: str, b: str, passages: Sequence[Passage]) -> None:
    """Print the most different passages; on a terminal with the characters in the colour of the side that predicts them better."""
    from rich.padding import Padding
    from rich.text import Text

    _heading("most different passages")
    out, colour = console.stdout(), console.is_terminal(sys.stdout) and not console.stdout().no_color
    if colour and passages:
        out.print(Text.assemble("  better on a character: ", (one_line(a), PAIR[0]), ", ", (one_line(b), PAIR[1])))
    for passage in passages:
        about = one_line(passage_sentence(a, b, passage))
        if colour:
            out.print(Padding(Text(about, style="dim"), (1, 0, 0, 2)))
            out.print(Padding(_coloured(passage), (0, 0, 0, 4)))
        else:
            text = printable(unix_lines(passage.text).replace("\n", "⏎"), keep="")
            console.write_wrapped(f"  {about}", "  ")
            console.write_wrapped(f"    {text}", "    ")


def passage_sentence(a: str, b: str, passage: Passage) -> str:
    """Which side is better on a passage, and by how much."""
    better = a if passage.delta < 0 else b
    return f"{better} is better by {abs(passage.delta):.3f} nats per character, from character {passage.start:,}"


def _coloured(passage: Passage) -> Text:
    """The passage with each character in the colour of the side that predicts it better, on that colour where it is much better."""
    from rich.style import Style
    from rich.text import Text

    text = Text()
    for character, difference in zip(passage.text, passage.differences.tolist(), strict=True):
        colour = PAIR[0] if difference < 0 else PAIR[1]
        much, some = Style(color="color(231)", bgcolor=colour, bold=True), Style(color=colour)
        shown = {"\n": "⏎\n", "\r": ""}.get(character, printable(character, keep=""))
        text.append(shown, much if abs(difference) >= _MUCH else some if abs(difference) >= _SOME else None)
    return text


def _print_samples(prompt: str, samples: Sequence[tuple[str, str]]) -> None:
    """Print the continuation by each side: side by side on a terminal, otherwise one after another."""
    _heading("from one prompt and seed")
    if not console.is_terminal(sys.stdout):
        for name, text in samples:
            lines = [f"  {one_line(name)}", *("    " + line for line in printable(prompt + text).splitlines())]
            console.write("\n".join(lines))
        return
    from rich.text import Text

    print_columns([(name, Text.assemble((printable(prompt), "dim"), printable(text))) for name, text in samples])
