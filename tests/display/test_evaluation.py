"""The score of a run on the terminal."""

from __future__ import annotations

import pytest

from minigpt_cli.display import console, format
from minigpt_cli.display.evaluation import _print_baselines
from minigpt_cli.evaluation.baselines import Baselines


def test_bars_differ_by_an_eighth_of_a_character() -> None:
    bars = [format.bar(eighths / 256, 32) for eighths in range(1, 257)]
    assert len(set(bars)) == 256
    assert len(format.bar(1.0, 32)) == 32


def test_this_model_is_highlighted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "use_colour", lambda stream: True)
    _print_baselines(1.5, Baselines(uniform=4.0, unigram=3.0, bigram=2.5, xz=1.8, xz_alone=1.9))
    coloured = [line for line in capsys.readouterr().out.splitlines() if "\x1b[" in line]
    assert ["this model" in line for line in coloured] == [True]
