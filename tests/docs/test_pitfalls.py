"""The page of pitfalls has an entry for each finding of `runs diagnose`, and its figures are those of the recorded runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks import doctor

from minigpt_cli.evaluation.diagnosis import RULES, diagnose

PAGE = (Path(__file__).parents[2] / "minigpt_cli" / "docs" / "pitfalls.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
KNOWN = json.loads(doctor.PACKAGED.read_text(encoding="utf-8"))


def test_each_finding_has_its_entry_and_each_entry_its_finding() -> None:
    assert list(SECTIONS) == [*RULES, "The thresholds", "What no rule can find"]


@pytest.mark.parametrize("fault", RULES)
def test_an_entry_has_symptom_reason_commands_and_the_measured_rate(fault: str) -> None:
    entry = SECTIONS[fault]
    parts = ("**What you see.**", "```text", "**Why.**", "**What to type.**", "```sh\nminigpt ", "Right in ")
    assert [entry.count(part) for part in parts] == [1] * len(parts)
    right, of = KNOWN["hit_rates"][fault]
    assert f"Right in {right} of {of} known cases." in entry


def test_the_evidence_is_that_of_recorded_runs() -> None:
    said = {
        fault: {found[0].evidence for _, named, shown in doctor.read_cases() if named == fault and (found := diagnose(shown))}
        for fault in RULES
    }
    for fault in RULES:
        (evidence,) = re.findall(r"```text\n(.*)\n```", SECTIONS[fault])
        assert evidence in said[fault], fault


def test_the_table_has_every_threshold_with_its_value() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", SECTIONS["The thresholds"], re.M)
    assert {name: float(value) for name, value in rows} == KNOWN["thresholds"]


def test_the_rates_of_all_cases_together_are_the_measured_ones() -> None:
    found = doctor.report(doctor.read_cases())
    right, of = (sum(column) for column in zip(*found["named"].values(), strict=True))
    blamed, healthy = found["blamed"]
    assert f"{right} of {of} runs with a fault were\nnamed, and {blamed} of {healthy} healthy runs was blamed" in PAGE
