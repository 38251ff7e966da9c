"""A class: what students handed in is opened without trust, ranked, and shown with their bets."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import browser

from minigpt_cli.evaluation import class_board, handed_in
from minigpt_cli.evaluation.class_board import summary
from minigpt_cli.evaluation.handed_in import Student
from minigpt_cli.runstore.journal import Event, Journal

from .conftest import Cli

EVIL = "\x1b[2J<script>alert(1)<"  # no folder is named with a slash
QUESTION = "attention.baseline"
OPTIONS = ["low", "pairs", "tie"]


def bet(choice: str, p: float, question: str = QUESTION, **more: Any) -> dict[str, Any]:
    rest = (1 - p) / (len(OPTIONS) - 1)
    shares = {option: p if option == choice else rest for option in OPTIONS}
    return {"question": question, "options": OPTIONS, "choice": choice, "confidence": 3, "p": shares} | more


def write_journal(folder: Path, choice: str, p: float, outcome: str, right: tuple[list[bool], list[bool]]) -> None:
    """The journal of a student who bet once, and answered cases before and after."""
    journal = Journal(folder)
    journal.append("attention", 1, "bet", bet(choice, p, prompt="Which will it pass?", labels={"low": "Not even the <b>pairs</b>."}))
    journal.append("attention", 1, "bet", bet("tie", 0.95))  # bet again: only the first counts
    journal.append("attention", 3, "revealed", {"question": QUESTION, "outcome": outcome, "nats": 0.0})
    for lesson, answers in zip(("doctor", "ward"), right, strict=True):
        for number, is_right in enumerate(answers):
            journal.append(lesson, number, "asked", {"question": f"{lesson}.{lesson}-{number}", "choice": "leak", "right": is_right})
        journal.append(lesson, 9, "asked", {"question": f"{lesson}.why", "choice": "1", "right": False})


@pytest.fixture
def class_folder(trained: Path) -> Path:
    """Three students: two with the same run, one with a run twice and a damaged one; a hostile folder and other things beside them."""
    folder = trained / "7b"
    for name in ("anna", "ben", EVIL):
        (folder / name).mkdir(parents=True)
        shutil.copytree(trained / "runs" / "first", folder / name / "runs" / "first")
    write_journal(folder / "anna" / "runs", "low", 0.8, "pairs", ([True, False], [True, True]))
    write_journal(folder / "ben" / "runs", "pairs", 0.6, "pairs", ([False, False], [True, False]))
    journal = folder / EVIL / "runs" / ".course.jsonl"
    write_journal(journal.parent, "pairs", 0.95, "low", ([], [True]))
    with journal.open("a") as file:
        wrong = [{"question": 3}, bet("low", 0.8) | {"p": {"low": 0.0}}, bet("elsewhere", 0.8)]
        for data in [*wrong, *(bet("low", 0.8, question=f"flood.{i}") for i in range(60))]:
            file.write(json.dumps({"t": "2026-01-02T03:04:05Z", "lesson": "order", "step": 0, "event": "bet", "data": data}) + "\n")
    runs = folder / EVIL / "runs"
    shutil.copytree(runs / "first", runs / "again")
    shutil.copytree(runs / "first", runs / "damaged")
    (runs / "damaged" / "run.json").write_text('{"name": "damaged", "n_params": 1e999}')
    shutil.copytree(runs / "first", runs / "flipped")
    weights = bytearray((runs / "flipped" / "best.safetensors").read_bytes())
    weights[-1] ^= 1
    (runs / "flipped" / "best.safetensors").write_bytes(weights)
    os.symlink(trained / "runs" / "first", runs / "linked")
    (folder / "carl").mkdir()
    os.symlink(folder / "anna", folder / "dora")
    (folder / "ernst.zip").write_bytes(b"PK")
    (folder / "list.txt").write_text("anna\nben\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def test_a_class_is_scored_on_the_teachers_text_and_nothing_is_written_into_its_folders(class_folder: Path, cli: Cli) -> None:
    (class_folder.parent / "teacher.txt").write_text("Whether to be or not is the question:\n" * 30, encoding="utf-8")
    before = contents(class_folder)
    done = cli("runs", "leaderboard", "--class", "7b", "--data", "teacher.txt", "--json", "--html", "class.html")
    assert done.code == 0, done.err
    assert contents(class_folder) == before
    ranking = done.json["ranking"]
    assert [row["student"] for row in ranking] == sorted(["anna", "ben", EVIL])
    assert len({row["nats_per_char"] for row in ranking}) == 1
    assert all(row["tied_with_best"] and row["ci95"][0] < row["nats_per_char"] < row["ci95"][1] for row in ranking)
    assert {row["student"]: row["n_runs"] for row in ranking}[EVIL] == 3  # of the flipped one, the save before it
    own = cli("eval", "first", "--data", "teacher.txt", "--nats-per-char")
    assert float(own.out) == pytest.approx(ranking[0]["nats_per_char"], abs=1e-4)
    problems = {(row["student"], row["problem"].split(":")[0]) for row in done.json["problems"]}
    assert {(EVIL, "run damaged"), (EVIL, "run flipped"), (EVIL, "run linked"), ("carl", "the folder runs is missing")} <= problems
    assert any(row["student"] == "dora" and "symbolic link" in row["problem"] for row in done.json["problems"])
    assert any(row["student"] == "ernst.zip" and "unpack" in row["problem"] for row in done.json["problems"])
    assert (EVIL, "3 entries of the journal do not hold what they should") in problems
    assert not any(row["student"] == "list.txt" for row in done.json["problems"])


def test_bets_count_once_and_cost_what_they_gave_to_what_happened(class_folder: Path, cli: Cli) -> None:
    found = cli("runs", "leaderboard", "--class", "7b", "--json").json
    question, *flood = found["questions"]
    assert len(flood) == class_board.MOST_QUESTIONS - 1
    assert question["name"] == QUESTION
    assert [option["n_bets"] for option in question["options"]] == [1, 2, 0]
    assert [option["n_happened"] for option in question["options"]] == [1, 2, 0]
    assert question["mean_confidence"] == pytest.approx((0.8 + 0.6 + 0.95) / 3)
    assert question["mean_nats"] == pytest.approx(-(math.log(0.1) + math.log(0.6) + math.log(0.025)) / 3)
    assert question["guess_nats"] == pytest.approx(math.log(3))
    test = found["test"]
    assert (test["n"], test["before"], test["after"], test["difference"]) == (2, 0.25, 0.75, 0.5)
    assert test["ci95"][0] < 0 < test["ci95"][1]  # both are better by 0.5, but two students and few cases say little


def test_without_a_text_records_are_ranked_each_text_apart(class_folder: Path, cli: Cli) -> None:
    done = cli("runs", "leaderboard", "--class", "7b")
    assert done.code == 0
    assert done.out.count("first") == 2
    assert "again" in done.out
    assert "\x1b" not in done.out + done.err
    assert "nothing was measured again" in " ".join(done.err.split())
    assert "cannot be compared" not in done.err
    assert "1 bet, happened 1×    Not even the <b>pairs</b>." in done.out
    assert "on average 78% sure" in done.out
    for name in ("anna", "ben"):
        path = class_folder / name / "runs" / "first" / "run.json"
        record = json.loads(path.read_text())
        split = record["corpus"]["splits"]["val"]
        split["sha256"] = ("a" if name == "anna" else "b") * 64
        del record["checksum"]
        from minigpt_cli.runstore.records import RunRecord

        path.write_text(RunRecord(**record).to_json())
    parts = cli("runs", "leaderboard", "--class", "7b")
    assert "cannot be compared" in " ".join(parts.err.split())
    assert len({row["text_sha256"] for row in cli("runs", "leaderboard", "--class", "7b", "--json").json["ranking"]}) == 3


def test_a_kept_score_and_a_record_that_lie_are_not_believed(class_folder: Path, cli: Cli) -> None:
    from minigpt_cli.runstore.records import RunRecord

    (class_folder.parent / "teacher.txt").write_text("To be, or not to be\n" * 30, encoding="utf-8")
    path = class_folder / "ben" / "runs" / "first" / "run.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    record["best"] |= {"nats_per_char": 0.01, "ci95": [0.0, 0.02]}
    path.write_text(RunRecord(**record).to_json())
    honest = cli("runs", "leaderboard", "--class", "7b", "--data", "teacher.txt", "--json").json["ranking"]
    assert len({row["nats_per_char"] for row in honest}) == 1
    assert cli("runs", "leaderboard", "--class", "7b", "--json").json["ranking"][0]["student"] == "ben"  # as it says itself


def test_a_run_that_lacks_its_mask_is_not_ranked_whatever_its_record_says(trained: Path, cli: Cli, tiny: list[str]) -> None:
    assert cli("train", "text.txt", "--name", "cheat", *tiny, "--arch", "plain", "--without", "mask").code == 0
    shutil.copytree("runs", "class/ida/runs")
    path = Path("class/ida/runs/cheat/run.json")
    from minigpt_cli.runstore.records import RunRecord

    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(RunRecord(**record | {"arch": "modern"}).to_json())
    done = cli("runs", "leaderboard", "--class", "class", "--json").json
    assert [row["run"] for row in done["ranking"]] == ["first"]
    assert done["problems"] == [{"student": "ida", "problem": "run cheat: was trained without mask, so it is not ranked"}]
    path.write_text(RunRecord(**record).to_json())  # as the course makes it: nothing to complain of
    assert cli("runs", "leaderboard", "--class", "class", "--json").json == done | {"problems": []}


def test_too_many_and_too_large_runs_are_a_line(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems() -> list[str]:
        return [line for student in handed_in.students_in(class_folder) if student.name == "anna" for line in student.problems]

    monkeypatch.setattr(handed_in, "MOST_BYTES", 100)
    assert any("its weights are" in line for line in problems())
    monkeypatch.setattr(handed_in, "MOST_WINDOW", 4)
    monkeypatch.setattr(handed_in, "MOST_BYTES", 1 << 30)
    assert any("too large for a class: a window of 8 tokens" in line for line in problems())
    monkeypatch.setattr(handed_in, "MOST_RUNS", 0)
    assert any("1 runs, more than the 0 that are read" in line for line in problems())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--class 7b --sort nats_per_char", "--sort cannot be used with --class"),
        ("--class 7b --fold-seeds", "--fold-seeds cannot be used with --class"),
        ("--class 7b --csv", "--csv cannot be used with --class"),
        ("--class 7b --runs-dir runs", "--runs-dir cannot be used with --class"),
        ("--class 7b --html class.txt", "does not end in .html"),
        ("--data text.txt", "--data is for --class FOLDER"),
        ("--html class.html", "--html is for --class FOLDER"),
        ("--class nowhere", "name a folder that holds a folder for each student"),
        ("--class empty", "holds no folders"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused_in_a_line(flags: str, message: str, home: Path, cli: Cli) -> None:
    (home / "empty").mkdir()
    done = cli("runs", "leaderboard", *flags.split())
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_one_student_gives_no_interval() -> None:
    def student(name: str, right: list[bool]) -> Student:
        data = [("doctor", {"question": "doctor.a", "right": False})]
        data += [("ward", {"question": f"ward.{i}", "right": r}) for i, r in enumerate(right)]
        return Student(name, events=[Event(t="2026-01-02T03:04:05Z", lesson=lesson, step=0, event="asked", data=d) for lesson, d in data])

    alone = summary([student("a", [True])]).test
    assert alone is not None
    assert alone.ci95 is None
    assert summary([student("a", [True, False]), student("b", [])]).test == summary([student("a", [True, False])]).test
    assert summary([]).test is None
    assert class_board.summary([Student("a")]).questions == []


@pytest.mark.parametrize("n", [4, 20])
def test_the_interval_of_before_and_after_holds_the_truth_as_often_as_it_says(n: int) -> None:
    """Students differ in what they know, and answer two cases before and four after."""
    draw = random.Random(n)
    held, repeats = 0, 400
    for _ in range(repeats):
        known = [draw.uniform(0.1, 0.6) for _ in range(n)]
        gained = 0.25
        answers = [([float(draw.random() < p) for _ in range(2)], [float(draw.random() < p + gained) for _ in range(4)]) for p in known]
        found = class_board._pre_post(answers)
        assert found is not None
        assert found.ci95 is not None
        held += found.ci95[0] <= gained <= found.ci95[1]
    assert held / repeats >= 0.94


@browser.needed
def test_the_page_of_a_hostile_class_is_quiet_and_fits_a_phone(class_folder: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("runs", "leaderboard", "--class", "7b", "--html", "class.html").code == 0
    page = (class_folder.parent / "class.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert "<b>pairs</b>" not in page
    with browser.browser(tmp_path / "profile") as tab:
        for width in (360, 1280):
            tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
            tab.open((class_folder.parent / "class.html").as_uri())
            tab.wait("document.body && document.body.children.length > 3")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert not tab.complaints
        assert all(address.startswith(("file:", "data:")) for address in tab.requests)
