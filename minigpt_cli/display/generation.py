"""Generated text on a terminal or in a pipe: streamed, coloured by probability, or several settings side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from minigpt_cli.display import console, waiting
from minigpt_cli.display.tables import print_columns
from minigpt_cli.escaping import printable

_DIM, _RESET = "\x1b[2m", "\x1b[0m"

# From certain to surprising: blue, green, yellow, orange, magenta. Clear for colour-blind people, on dark and light terminals.
PROBABILITY_BANDS = ((0.8, 33), (0.5, 29), (0.2, 136), (0.05, 166), (0.0, 163))


@dataclass(frozen=True)
class ShownToken:
    """One token of a continuation, with its probability and its alternatives."""

    name: str  # as streaming.pieces_of writes it
    text: str  # a character that is split over several tokens belongs to the last of them
    probability: float
    alternatives: Sequence[tuple[str, float]]


class TextStreamer:
    """Writes prompt and continuations to stdout as they come. On a terminal the prompt is dim and control characters are visible."""

    def __init__(self) -> None:
        self._terminal = console.is_terminal(sys.stdout)
        self._colour = console.use_colour(sys.stdout)
        self._ends_line = True

    def prompt(self, text: str) -> None:
        """Show the prompt."""
        if text:
            self._write(text, dim=True)

    def text(self, text: str) -> None:
        """Show the next piece of a continuation."""
        if text:
            self._write(text)

    def end(self) -> None:
        """End the line unless it has ended."""
        if not self._ends_line:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._ends_line = True

    def separator(self) -> None:
        """Write the line between two samples."""
        self.end()
        sys.stdout.write("---------------\n")

    def _write(self, text: str, *, dim: bool = False) -> None:
        waiting.remove()
        shown = printable(text) if self._terminal else text
        sys.stdout.write(f"{_DIM}{shown}{_RESET}" if dim and self._colour else shown)
        sys.stdout.flush()
        self._ends_line = text.endswith("\n")


def band(probability: float) -> int:
    """The colour (of 256) for a token of this probability."""
    return next(colour for least, colour in PROBABILITY_BANDS if probability >= least)


def visible(token: str) -> str:
    """A token on one line: spaces and line breaks as symbols, a part of a character as its bytes."""
    return printable(token.removeprefix("bytes:").replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥"), keep="")


def expectation(token: str, probability: float, expected: Sequence[tuple[str, float]]) -> str:
    """What a model expected in the place of a token, in one line: “z” 0.0003; expected “e” 0.62, “a” 0.20."""
    likely = ", ".join(f"“{visible(name)}” {_short(p)}" for name, p in expected)
    return f"“{visible(token)}” {_short(probability)}" + (f"; expected {likely}" if likely else ", the first: no token before it")


def _short(p: float) -> str:
    """A probability with two digits that tell something."""
    return f"{p:.2f}" if p >= 0.01 else f"{p:.4f}" if p >= 0.0001 else f"{p:.0e}"


def print_probabilities(prompt: str, tokens: Iterable[ShownToken], *, listed: bool = False) -> None:
    """Print the text coloured by probability; `listed`: before it, each token with its most probable alternatives."""
    from rich.text import Text

    out, shown = console.stdout(), list(tokens)
    if listed:
        _print_alternatives(shown)
    text = Text.assemble((printable(prompt), "dim"))  # the style of the prompt alone, not of the whole text
    for token in shown:
        text.append(printable(token.text), style=f"color({band(token.probability)})")
    out.print(text)
    legend = Text.assemble(("probability: ", "dim"))
    for (_, colour), word in zip(PROBABILITY_BANDS, ("80 % up", "50 %", "20 %", "5 %", "below"), strict=True):
        legend.append(f"{word} ", style=f"color({colour})")
    legend.append("" if listed else "(others: --alternatives)", style="dim")
    out.print(legend)


def _print_alternatives(shown: Sequence[ShownToken]) -> None:
    from rich.table import Table
    from rich.text import Text

    width = max((len(token.alternatives) for token in shown), default=0)
    table = Table("token", "p", *(f"{n}." for n in range(1, width + 1)), box=None, header_style="dim")
    for token in shown:
        cells = [f"{visible(name)} {p:.2f}" for name, p in token.alternatives]
        table.add_row(Text(visible(token.name), style=f"color({band(token.probability)})"), f"{token.probability:.2f}", *cells)
    console.stdout().print(table)


@dataclass(frozen=True)
class Setting:
    """The text written with one setting of a sweep."""

    label: str
    text: str
    distinct: Sequence[float]  # distinct-1, -2 and -3 of its words
    nats_per_char: float | None


def print_sweep(prompt: str, settings: Sequence[Setting]) -> None:
    """Print the texts of all settings side by side, with the variety and the score of each."""
    from rich.text import Text

    texts = [(s.label, Text.assemble((printable(prompt), "dim"), printable(s.text))) for s in settings]
    print_columns(texts, [Text(f"\n{_figures(s)}", style="dim") for s in settings])


def _figures(setting: Setting) -> str:
    nats = "–" if setting.nats_per_char is None else f"{setting.nats_per_char:.3f}"
    distinct = "\n".join(f"{value:.2f} distinct-{n}" for n, value in enumerate(setting.distinct, 1))
    return f"{nats} nats per character\n{distinct}"


ReadLine = Callable[[], str]


def line_reader(complete: Sequence[str]) -> ReadLine:
    """A function that reads a line; on a terminal with editing, and with saved history and completion by the extra `interactive`.

    It raises EOFError at the end of input.
    """
    if not console.is_terminal(sys.stdin) or not console.is_terminal(sys.stdout):
        return _plain_line
    waiting.remove()
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
    except ImportError:
        with suppress(ImportError):  # gives input() history and editing; Windows does not have it
            import readline  # noqa: F401
        return lambda: input("> ")
    folder = _history_folder()
    history = FileHistory(os.path.join(folder, "prompts")) if folder else InMemoryHistory()
    session: Any = PromptSession(history=history, completer=WordCompleter(list(complete), sentence=True))
    return lambda: str(session.prompt("> "))


def _plain_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _history_folder() -> str | None:
    from platformdirs import user_state_dir

    folder = user_state_dir("minigpt", appauthor=False)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return None
    return folder
