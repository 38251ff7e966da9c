"""Makes untrusted text safe for each output format: one function for each format, used by all code that writes it. No torch.

terminal   printable, one_line       no escape sequences, which move the cursor, change the title or hide text
HTML, SVG  html                      no markup, and no characters that a terminal must not get
Markdown   markdown…                 no markup, no HTML, one line
CSV        csv_cell                  no formula that a spreadsheet would compute
JSON       json_text                 the same document; characters that a terminal must not get are written as \\u0000
files      file_name                 no folder, no hidden file, no character with a meaning in a shell or a Modelfile
"""

from __future__ import annotations

import html as _html
import json
import re
import unicodedata
from typing import Any

_JOINERS = "\u200c\u200d\ufeff\u00ad"  # they are part of ordinary words
_ACCENT = r"[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_STACKED = re.compile(f"(?<={_ACCENT * 4}){_ACCENT}")  # no language has five on one letter
_MARKDOWN = re.compile(r"[\\`*_\[\]|~$]|<(?=[A-Za-z/!?])|&(?=[#\w]+;)")
_LINE_START = re.compile(r"^(?:[#>=+-]|\d+(?=[.)]))")  # what begins a heading, a quotation or a list
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_UNFIT_FOR_FILES = re.compile(r"[^A-Za-z0-9_.]+")


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` with control characters (escape sequences, bells, bidirectional overrides) and stacked accents escaped, as
    \\x1b."""
    if not text.isascii():
        text = _STACKED.sub(lambda match: _written_out(match[0]), text)
    if text.isprintable():
        return text
    return "".join(c if c in keep or _is_harmless(c) else _written_out(c) for c in text)


def _is_harmless(character: str) -> bool:
    """Whether a terminal shows the character and does nothing else."""
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} or character in _JOINERS


def _written_out(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def unix_lines(text: str) -> str:
    """`text` with its lines ended as this system shows them, where it learned them from Windows or an old Mac."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def one_line(text: str) -> str:
    """`text` on one line, safe to show."""
    return printable(" ".join(text.splitlines()).strip(), keep="")


def html(text: str) -> str:
    """`text` as the content of an element or attribute of HTML or SVG."""
    return _html.escape(printable(text))


def markdown(text: str) -> str:
    """`text` as plain text on a line of Markdown."""
    return _LINE_START.sub(lambda match: f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}", markdown_cell(text))


def markdown_cell(text: str) -> str:
    """`text` as plain text in a cell of a Markdown table, where a number needs no escape."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def markdown_code(text: str) -> str:
    """`text` as code in one line of Markdown, not in tables."""
    shown = one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def csv_cell(value: Any) -> Any:
    """`value` as a cell: None is empty, numbers stay unchanged, a text that a spreadsheet would compute gets an apostrophe."""
    if not isinstance(value, str):
        return "" if value is None else value
    return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) and not _is_numbers(value) else value


def _is_numbers(text: str) -> bool:
    try:
        return bool([float(part) for part in text.split()])
    except ValueError:
        return False


def json_text(document: str) -> str:
    """The same JSON document without characters that control a terminal."""
    document = document if document.isascii() else _STACKED.sub(lambda match: _written_out(match[0]), document)
    lines = document.split("\n")
    return "\n".join(line if line.isprintable() else _printable_json(line) for line in lines)


def _printable_json(line: str) -> str:
    return "".join(c if _is_harmless(c) else json.dumps(c)[1:-1] for c in line)


def file_name(text: str, most: int = 100) -> str:
    """`text` as the name of a file in plain characters, at most `most` long."""
    return _UNFIT_FOR_FILES.sub("-", text).strip("-.")[:most] or "text"


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "≈": r"$\approx$", "±": r"$\pm$", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


def latex(text: str) -> str:
    """`text` in one line, so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))
