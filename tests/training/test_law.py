"""The law beside the runs that it was fitted to."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import planning

from minigpt_cli.training.law import LAW


def test_the_table_of_its_misses_is_that_of_its_coefficients() -> None:
    page = Path(planning.__file__).with_name("RESULTS.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| (\w+) \| (\d+) \| (?:yes|no) \| [\d.]+ \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(shown) > 8
    rows = [r for r in planning.rows() if planning._is_of_the_law(r)]
    for text, number, missed in shown:
        mine = [r for r in rows if r["text"] == text]
        assert (len(mine), round(planning.rms(planning.misses(LAW, mine)), 4)) == (int(number), float(missed)), text
