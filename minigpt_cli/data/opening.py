"""A prompt that a run understands: the first words of its own validation text, or the first question of its conversations. No torch.

What is suggested to type next is made from it, since a tokenizer need not know any fixed example.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from minigpt_cli.data.chat import END, learned_chats, prompt_for, token_ids
from minigpt_cli.data.dataset import first_tokens
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.tokenization.contract import END_OF_TEXT, Tokenizer

_TOKENS = 4096  # of the validation text, among which a prompt is looked for
_WORDS = re.compile(r"[^\W_][^\s]*(?:[ ][^\s]+){0,2}")  # up to three words of a line; the first begins with a letter or digit
_LONGEST = 24  # characters: a text without spaces is one word
_LONGEST_QUESTION = 80


class Opening(NamedTuple):
    """A prompt; empty where none is known, and the model begins without one."""

    text: str
    chat: bool = False  # a question, to be asked in the template of conversations

    @property
    def raw(self) -> str:
        """The prompt as the model reads it."""
        return prompt_for([("user", self.text)]) if self.chat else self.text


def opening_of(record: RunRecord, tokenizer: Tokenizer) -> Opening:
    """The first prompt from the run's validation text that its tokenizer knows; `The ` where the text is not there any more."""
    return openings(record, tokenizer, 1)[0]


def openings(record: RunRecord, tokenizer: Tokenizer, most: int) -> list[Opening]:
    """Up to `most` different prompts as `opening_of` finds them, at least one."""
    chat = learned_chats(record) and token_ids(tokenizer) is not None
    try:
        folder = Path(record.corpus.dataset_dir) if record.corpus and record.corpus.dataset_dir else None
        text = tokenizer.decode(first_tokens(folder, "val", _TOKENS)) if folder else ""
    except (RunDamaged, UsageError):
        text = ""
    candidates = dict.fromkeys(_questions(text) if chat else _words(text))
    found = list(islice((words for words in candidates if _is_usable(words, tokenizer)), most))
    if not found and not chat and _is_usable("The ", tokenizer):
        found = ["The "]
    return [Opening(words, chat) for words in found or [""]]


def _questions(text: str) -> Iterator[str]:
    for question in re.findall(rf"<\|user\|>(.*?){re.escape(END)}", text, re.DOTALL):
        line = next((line.strip() for line in question.splitlines() if line.strip()), "")
        if line and line != "-":  # which would mean stdin
            yield line if len(line) <= _LONGEST_QUESTION else line[:_LONGEST_QUESTION].rpartition(" ")[0] or line[:_LONGEST_QUESTION]


def _words(text: str) -> Iterator[str]:
    *documents, _ = text.split(END_OF_TEXT)
    for document in documents:
        if "\n" not in document.strip() and len(document) < _LONGEST:  # as a name: its beginning
            yield document[: (len(document) + 2) // 3]
    lines = text.replace(END_OF_TEXT, "\n").split("\n")
    for line in lines[1:] or lines:  # the split may begin in the middle of its first line
        if found := _WORDS.search(line):
            yield found[0][:_LONGEST].rstrip()


def _is_usable(text: str, tokenizer: Tokenizer) -> bool:
    """Whether `text` can be typed and the tokenizer knows it."""
    if not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text:
        return False
    try:
        tokenizer.encode(text)
    except UsageError:
        return False
    return True
