"""The glossary defines the words that minigpt uses, and no second word for the same thing is used anywhere."""

from __future__ import annotations

import re
import shlex

import pytest
from harness.pages import DOCS, TEXTS, messages, parsed

PAGE = DOCS / "glossary.md"
ENTRIES = re.findall(r"^- (\*\*.+)$", TEXTS[PAGE], re.M)
SAID = "\n".join([messages(), *(text for page, text in TEXTS.items() if page != PAGE)])


def is_said(words: str) -> bool:
    """Whether a message, a help text or another page has these words, in the singular or the plural."""
    pattern = re.escape(words.lower()).replace(r"\ ", r"[\s-]+")
    return re.search(rf"(?<!\w){pattern}(s|es)?(?!\w)", SAID.lower()) is not None


def terms(entry: str) -> list[str]:
    return re.findall(r"\*\*(.+?)\*\*", entry)


def test_the_glossary_has_every_word_once_and_in_at_most_three_sentences() -> None:
    found = [term for entry in ENTRIES for term in terms(entry)]
    assert len(found) == len(set(found))
    assert len(found) >= 70
    for entry in ENTRIES:
        definition = entry.partition(" See `")[0]
        assert len(re.findall(r"[.!](?=\s|$)", re.sub(r"`.*?`", "", definition))) <= 3, entry


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: terms(entry)[0])
def test_a_word_is_used_and_shown_by_a_command_and_no_other_is_used_for_it(entry: str) -> None:
    for term in terms(entry):
        assert is_said(term), f"nothing says {term!r}"
    commands = re.findall(r"See `(minigpt .+?)`", entry)
    assert len(commands) == 1
    parsed(shlex.split(commands[0])[1:])
    _, _, others = entry.partition("Elsewhere: ")
    for other in filter(None, others.removesuffix(".").split(", ")):
        assert not is_said(other), f"{other!r} is said for {terms(entry)[0]!r}"
