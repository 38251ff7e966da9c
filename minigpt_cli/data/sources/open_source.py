"""What a person typed, as a source."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from minigpt_cli import registry
from minigpt_cli.config import DataConfig
from minigpt_cli.data.chat import is_chat
from minigpt_cli.data.sources.chat import ChatFile
from minigpt_cli.data.sources.contract import PlainText, Source
from minigpt_cli.data.sources.corpora import EMBEDDED, named_corpus
from minigpt_cli.data.sources.spool import Spool
from minigpt_cli.data.sources.text import Several, Stream, open_path
from minigpt_cli.errors import UsageError


def data_folder() -> Path:
    """Where texts and token files live: MINIGPT_DATA_DIR, or ./data."""
    return Path(os.environ.get("MINIGPT_DATA_DIR") or "data")


def open_source(source: str | Sequence[str], data_dir: Path | None = None, options: DataConfig | None = None) -> Source:
    """What `source` names, several one after the other, read as `options` say; empty: input.txt in the data folder if it is there, else
    python-docs. Raises UsageError."""
    if not isinstance(source, str):
        return _several(list(source), data_dir)
    if is_chat(source):
        return ChatFile(Path(source).expanduser())
    if source == "":
        default = (data_dir or data_folder()) / "input.txt"
        return open_path(default) if default.exists() else named_corpus(EMBEDDED)
    if source == "-":
        return Stream("-", Spool(lambda: nullcontext(sys.stdin.buffer)))
    if source in registry.CORPORA and not Path(source).is_file():
        return named_corpus(source)
    return open_path(Path(source), source)


def _several(sources: list[str], data_dir: Path | None) -> Source:
    if sources.count("-") > 1:
        raise UsageError("standard input can be read only once: give '-' only once")
    opened = [open_source(source, data_dir) for source in sources or [""]]
    texts = [source for source in opened if isinstance(source, PlainText)]
    if len(opened) == 1:
        return opened[0]
    if chat := next((source for source in opened if source not in texts), None):
        raise UsageError(f"{chat.label} holds conversations, which are not joined with other texts: give it alone")
    return Several(" ".join(text.label for text in texts), tuple(texts))
