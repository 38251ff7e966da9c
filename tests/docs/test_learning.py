"""The page for learners: its order leads through the textbook and from text to weights, each station asks and answers, and its drawings are
those of the code."""

from __future__ import annotations

import re

import pytest
from harness.pages import DOCS, ROOT, TEXTS
from pictures import diagrams

PAGE = TEXTS[DOCS / "learning.md"]
STATIONS = re.findall(r"^### (\d+)\. (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
ORDER = """
    models/contract models/layers models/attention models/bigram models/transformer models/classic models/modern models/moe models/plain
    tokenization/char data/batches training/state training/trainer training/schedules training/optimizers generation/sampling
    evaluation/statistics
"""


def test_files_come_in_an_order_in_which_each_needs_only_those_before() -> None:
    assert [int(number) for number, _, _ in STATIONS] == list(range(1, len(STATIONS) + 1))
    assert re.findall(r"\(\.\./(.*?)\.py\)", " ".join(title for _, title, _ in STATIONS)) == ORDER.split()


@pytest.mark.parametrize(("title", "text"), [station[1:] for station in STATIONS])
def test_a_station_says_what_to_look_for_asks_and_answers_by_a_command(title: str, text: str) -> None:
    parts = ("**Look for**", "**Question.**", "```sh\nminigpt ", "<details><summary>Answer</summary>\n\n", "</details>")
    assert [text.count(part) for part in parts] == [1] * len(parts)
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    files = [(DOCS / path).read_text("utf-8") for path in re.findall(r"\((\.\./.*?\.py)\)", title)]
    for name in re.findall(r"`([\w.]+)`", text[text.index(parts[0]) : text.index(parts[1])]):
        assert any(re.search(rf"\b{name.rpartition('.')[2]}\b", file) for file in files), f"{title}: {name}"


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_a_drawing_has_the_shapes_of_the_model(name: str) -> None:
    assert (ROOT / "tests" / "pictures" / name).read_text("utf-8") == diagrams.DIAGRAMS[name](), "python tests/pictures/diagrams.py"
    assert f"tests/pictures/{name})" in PAGE
