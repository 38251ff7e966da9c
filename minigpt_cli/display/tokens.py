"""The result of `tokenize`: counts of tokens, and the pieces that a tokenizer cuts a text into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minigpt_cli.data.preview import RARE, Preview
from minigpt_cli.display import console
from minigpt_cli.escaping import unix_lines
from minigpt_cli.runstore.records import Leak
from minigpt_cli.tokenization.contract import END_OF_TEXT

_WIDTH = 100  # of a window
_LABEL = 11


def print_summary(label: str, summary: Mapping[str, Any]) -> None:
    """Print what `tokenize --json` holds as a few lines."""
    tokens = ", ".join(f"{name} {n:,}" for name, n in summary["tokens"].items() if n)
    for name, value in (
        ("text", f"{label}: {summary['chars']:,} characters, {summary['bytes']:,} bytes"),
        ("tokenizer", f"{summary['tokenizer']}, a vocabulary of {summary['vocab_size']:,}"),
        ("tokens", f"{tokens}; {summary['chars_per_token']:.2f} characters a token"),
        ("written to", summary["out"]),
        ("sha256", summary["sha256"]),
    ):
        console.write_labelled(name, value, _LABEL)


def print_preview(found: Preview, n_documents: int, leak: Leak | None) -> None:
    """Print what a dataset holds: documents, alphabet, windows, warnings."""
    lines = []
    if n_documents > 1:
        by_split = ", ".join(f"{name} {n:,}" for name, n in found.documents.items())
        short, long = (f" ({name})" if name else "" for name in (found.shortest_name, found.longest_name))
        lengths = f"{found.shortest:,}{short} to {found.longest:,} characters{long}"
        lines.append(("documents", f"{by_split}; " + (lengths if found.shortest < found.longest else f"{found.longest:,} characters each")))
    if len(found.kinds) > 1:
        lines.append(("kinds", ", ".join(f"{kind} {share:.0%}" for kind, share in found.kinds.items())))
    if found.duplicates:
        lines.append(("duplicates", f"{found.duplicates:,} documents repeat another word for word"))
    scripts = ", ".join(f"{name} {share:.0%}" for name, share in list(found.scripts.items())[:4] if share >= 0.005)
    shown = " ".join(repr(character)[1:-1] for character in found.rare[:12])
    rare = f"; {len(found.rare):,} less than {RARE} times: {shown}" if found.rare else ""
    lines.append(("alphabet", f"{found.alphabet:,} characters{f' ({scripts})' if scripts else ''}{rare}"))
    if leak is not None:
        lines.append(("leak", leak.in_words))
    for name, value in lines:
        console.write_labelled(name, value, _LABEL)
    for window in found.windows:
        marked = unix_lines(window).replace(END_OF_TEXT, " ■ ").replace("\n", "⏎")
        console.write_labelled("window", marked[:_WIDTH], _LABEL)
    for warning in found.warnings:
        console.warn(warning)


def print_pieces(pieces: Sequence[tuple[int, bytes]]) -> None:
    """Print id and piece, one a line, as Python writes strings; a piece that is not whole characters as bytes."""
    width = max((len(str(i)) for i, _ in pieces), default=1)
    for i, token in pieces:
        console.write(f"{i:>{width}}  {_quoted(token)}")


def _quoted(token: bytes) -> str:
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)
