"""A comparison on the terminal."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from minigpt_cli.display import comparison
from minigpt_cli.evaluation.comparison import Pair, Passage
from minigpt_cli.evaluation.statistics import Estimate


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to stdout from now on, a terminal of 60 columns."""
    stream = io.StringIO()
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def test_a_verdict_has_the_names_in_their_colours_and_no_part_of_another_word(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    estimate = Estimate(mean=0.1, low=0.05, high=0.15, std_error=0.02, p_value=0.001, block=1)
    comparison._print_verdicts(["s", "modern"], [Pair("s", "modern", estimate, 0.001, "b_better", "weights")])
    shown = screen.getvalue()
    assert "38;5;32ms\x1b" in shown
    assert "38;5;166mmodern\x1b" in shown
    assert shown.count("38;5;32m") == 1


def test_a_passage_is_shown_once_in_the_colours_of_both_sides_and_breaks_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    text = "seven " * 20
    differences = np.where(np.arange(len(text)) % 12 < 6, -2.0, 2.0)
    comparison._print_passages("left", "right", [Passage(7, text, differences, -0.1)])
    shown = screen.getvalue()
    assert shown.count("left is better by") == 1
    assert "48;5;32m" in shown
    assert "48;5;166m" in shown
    plain = "".join(part.partition("m")[2] if i else part for i, part in enumerate(shown.split("\x1b[")))
    assert plain.split().count("seven") == 20
    assert all(len(line) <= 60 for line in plain.splitlines())
