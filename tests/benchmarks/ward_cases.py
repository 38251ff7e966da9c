"""Make the pool of the course's ward, minigpt_cli/course/cases.jsonl: real runs with one known fault each, and healthy ones.

    python tests/benchmarks/ward_cases.py TEXT TEXT TEXT [--out DIR]

The first 40 cases of doctor.py are trained, or used where DIR has them: every fault in three ways, each on another text, and ten healthy
runs. A case that `minigpt runs diagnose` does not name rightly is left out. JSON on stdout has the counts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import doctor

from minigpt_cli.course.ward import HEALTHY, Case, case_of
from minigpt_cli.evaluation.diagnosis import diagnose
from minigpt_cli.runstore.directory import Run

MADE = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs=3, type=Path)
    parser.add_argument("--out", type=Path, default=Path("doctor"))
    arguments = parser.parse_args()
    out, titles = arguments.out.resolve(), [path.stem for path in arguments.texts]
    todo = doctor.planned(arguments.texts, 3, out)[:MADE]
    doctor.train_all(todo, out)
    found = [recorded(case, out, titles) for case in todo if is_named(case, out)]
    random.Random(0).shuffle(found)  # the order of faults would be known otherwise
    lines = [json.dumps(asdict(replace(case, name=f"ward-{n}")), ensure_ascii=False) for n, case in enumerate(found, 1)]
    Path(str(files("minigpt_cli.course") / "cases.jsonl")).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(json.dumps({"left_out": len(todo) - len(found), "kinds": Counter(case.answer for case in found)}, indent=2))


def is_named(case: doctor.Case, out: Path) -> bool:
    """Whether `minigpt runs diagnose` finds this fault first, or nothing in a healthy run."""
    findings = diagnose(doctor.symptoms(case, out))
    return case.fault == (findings[0].finding if findings else HEALTHY)


def recorded(case: doctor.Case, out: Path, titles: list[str]) -> Case:
    """A case with the title of its text; the run itself is not shipped, so its name is left out of the command that mends it."""
    run = Run(out / "runs" / case.name)
    found = case_of(run, case.fault)
    mend = re.sub(r" --config \S+", " …", found.mend).replace(f"--resume {case.name}", "--resume …")
    text = re.search(r"(\d)(?:-\d)?\.txt$", found.text)
    return replace(found, text=titles[int(text[1])] if text else found.text, mend=mend)


if __name__ == "__main__":
    main()
