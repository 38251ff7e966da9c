"""The whole course, played once by a scripted learner at tiny size; the laws are then read off what it wrote and kept."""

from __future__ import annotations

import re
import shlex
import string
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.learner import Learner

from minigpt_cli.cli import run as run_command
from minigpt_cli.course import bets as betting
from minigpt_cli.course import checks, tutor
from minigpt_cli.course.lesson import Bet, Needs, Reveal, Run, View, lessons
from minigpt_cli.course.outcomes import OUTCOMES
from minigpt_cli.course.progress import Place, Progress
from minigpt_cli.course.text import shown, source_in
from minigpt_cli.display import course as screen
from minigpt_cli.display.format import quoted
from minigpt_cli.runstore.journal import Event, Journal
from minigpt_cli.runstore.store import RunStore

TINY = {
    "MINIGPT_BLOCK_SIZE": "16", "MINIGPT_BATCH_SIZE": "4", "MINIGPT_EVAL_ITERS": "1", "MINIGPT_MAX_STEPS": "20", "MINIGPT_DEVICE": "cpu",
    "MINIGPT_PRECISION": "fp32", "MINIGPT_ATTENTION": "plain", "MINIGPT_THREADS": "1",
}  # fmt: skip
TEXT = "".join(f"{string.ascii_letters}?. ROMEO: Once upon {i * i % 97} days to be,\nor not: {i % 7}!\n" for i in range(300))
OTHER_WORDS = {"count": "minigpt train --name other --lr 0.05 --max-steps 30 'my text.txt' --arch bigram"}  # that do the same
SEED = 0  # of the cases that are drawn, and of the fault of the learner's own
KILLED_AT = "3 Attention"


class Played(NamedTuple):
    """The folder of the course, everything that was written, and the events."""

    folder: Path
    lines: list[str]
    events: list[Event]
    at_kill: tuple[str, str]  # the headings before the kill and after it


class Script:
    """What the learner types: everywhere a wrong thing first, then the third hint, or other words that do the same."""

    def __init__(self) -> None:
        self.typed: dict[str, int] = {}  # lines that were typed under a heading

    def __call__(self, prompt: str, lines: list[str]) -> str:
        heading = next(line for line in reversed(lines) if line.startswith("── "))
        turn = self.typed[heading] = self.typed.get(heading, -1) + 1
        assert turn < 150, "\n".join(lines[-30:])
        if "left" in prompt:
            return "e" if turn % 2 else ""
        if prompt != ">":
            return "" if prompt.startswith("Enter") else "2" if turn else "x"
        if turn < 5:
            return ["minigpt runs list", "nonsense", "/hint", "/hint", "/hint"][turn]
        assert turn < 8, "\n".join(lines[-30:])
        command = lines[max(i for i, line in enumerate(lines) if line == "Type this, or press Enter:") + 1 : -1]
        lesson = next(lesson for lesson in lessons() if heading.startswith(f"── {lesson.number} "))
        return OTHER_WORDS.get(lesson.name) or "\n".join(command)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("course")
    (folder / "my text.txt").write_text(TEXT)
    began = {"text": str(folder / "my text.txt"), "seed": SEED}
    Journal(folder / "runs").append("doctor", 0, "started", began)
    script = Script()
    first = Learner(folder, TINY)
    first.play(lambda prompt, lines: None if prompt == ">" and first.heading.startswith(KILLED_AT) else script(prompt, lines))
    first.kill()
    second = Learner(folder, TINY)
    second.prompt()
    heading_after = second.heading
    second.type("/again")
    second.play(lambda prompt, lines: None if second.heading == "The end" else script(prompt, lines))
    assert second.end() == 0, "\n".join(second.lines[-30:])
    return Played(folder, [*first.lines, *second.lines], list(Journal(folder / "runs").events()), (first.heading, heading_after))


def test_every_lesson_is_finished(played: Played) -> None:
    assert Progress(played.events).finished == {lesson.name for lesson in lessons()}


def test_each_command_passes_its_step_and_nothing_before_it_does(played: Played) -> None:
    for lesson in lessons():
        for number, step in enumerate(lesson.steps):
            if not isinstance(step, Run | View):
                continue
            of_step = [event for event in played.events if (event.lesson, event.step) == (lesson.name, number)]
            kinds = [event.event for event in of_step if event.event != "guessed"]
            assert kinds[:6] == ["entered", "ran", "hint", "hint", "hint", "ran"], lesson.name
            assert [event.data["code"] for event in of_step if event.event == "ran"] == [0, 0], lesson.name
            assert kinds[6] == "passed", lesson.name


def test_it_ends_with_a_page_to_keep(played: Played) -> None:
    page = (played.folder / "runs" / "course.html").read_text("utf-8")
    assert "patient" in page or "parrot" in page
    assert "runs/course.html" in "\n".join(played.lines)


def test_what_is_missing_is_said_as_a_difference(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(played.folder)
    store, text = RunStore(played.folder / "runs"), str(played.folder / "my text.txt")
    began = played.events[:1]

    def missing(needs: Needs, source: str = text) -> str:
        with pytest.raises(checks.Missing) as raised:
            checks.passing(store, [began[0].model_copy(update={"t": store.runs()[-1].record.place})], needs, source, store.find("mine"))
        return str(raised.value)

    assert checks.passing(store, began, Needs(settings={"without": "mask"}, like="mine"), text, store.find("mine")) == ["cheat"]
    assert checks.passing(store, began, Needs(settings={"arch": "bigram"}), text, None) == ["other"]
    assert "this step needs --without mask" in missing(Needs(settings={"without": "mask"}))
    assert "the course uses book.txt" in missing(Needs(settings={"arch": "modern"}, like="mine"), "book.txt")
    assert "differs from mine in" in missing(Needs(like="mine"))
    assert "two recipes with 9 seeds each" in missing(Needs(seeds=9))


def test_every_bet_is_revealed_as_it_was_measured(played: Played) -> None:
    bets = {event.data["question"]: event.data for event in played.events if event.event == "bet"}
    revealed = {event.data["question"]: event.data for event in played.events if event.event == "revealed"}
    assert (
        bets.keys()
        == revealed.keys()
        == {f"{lesson.name}.{step.id}" for lesson in lessons() for step in lesson.steps if isinstance(step, Bet)}
    )
    for question, data in revealed.items():
        assert data["nats"] == pytest.approx(betting.cost(bets[question]["p"][data["outcome"]]))
        assert sum(bets[question]["p"].values()) == pytest.approx(1)


def test_the_place_after_any_event_is_where_the_next_one_happens(played: Played) -> None:
    """So a session that is killed anywhere continues at the same step."""
    for count in range(1, len(played.events)):
        following = played.events[count]
        assert Progress(played.events[:count]).place == Place(following.lesson, following.step), following


def test_a_killed_session_shows_the_same_screen_again(played: Played) -> None:
    before, after = played.at_kill
    assert before.startswith(KILLED_AT)
    assert after == before


def test_a_session_begins_again_after_every_event(
    played: Played, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a kill cut the last line of the journal in half."""
    monkeypatch.chdir(played.folder)
    journal = played.folder / "runs" / ".course.jsonl"
    whole = journal.read_bytes()
    ends = [match.end() for match in re.finditer(rb"\n", whole)]

    def closed(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(screen, "read", closed)
    try:
        for count in range(1, len(ends)):
            journal.write_bytes(whole[: (ends[count - 1] + ends[count]) // 2])
            place = Progress(played.events[:count]).place
            assert tutor.learn(run_command) == 0
            now = Progress(Journal(played.folder / "runs").events()).place
            assert now.lesson == place.lesson
            assert now.step - place.step in (0, 1, 2)  # a run that was made before the kill passes its step, and its bet is revealed
            shown = capsys.readouterr().out
            assert now != place or "\n── " in shown or ". Next: " in shown or "is trained on your text" in shown
    finally:
        journal.write_bytes(whole)


def test_who_leaves_everything_out_is_told_nothing_that_did_not_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my text.txt").write_text(TEXT)
    typed = iter(["no such file", str(tmp_path / "my text.txt"), *["/skip"] * 100])

    def skip(prompt: str) -> str:
        if prompt == "> " and "── The end" in (told := capsys.readouterr().out):
            assert "Not done yet, or with steps left out: 0" in told
            raise EOFError
        return next(typed)

    monkeypatch.setattr(screen, "read", skip)
    assert tutor.learn(run_command) == 0
    events = Journal(tmp_path / "runs").events()
    assert {event.event for event in events} == {"started", "entered", "skipped", "finished", "passed"}
    assert not Progress(events).finished
    assert events[0].data["text"] == str(tmp_path / "my text.txt")


def test_a_path_counts_as_it_is_typed_or_dragged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my text.txt"
    path.write_text(TEXT)
    escaped = str(path).replace(" ", "\\ ")
    for typed in (
        "my text.txt",
        f"'{path}' ",
        f'"{path}"',
        escaped,
        f"{path} ",
        path.as_uri(),
        "./my\\ text.txt",
        f"../{tmp_path.name}/my text.txt",
    ):
        assert source_in(typed) == str(path), typed
    assert source_in("  ") is None
    assert source_in("tinyshakespeare") == "tinyshakespeare"
    assert shown(str(path)) == "my text.txt"


def test_before_a_text_is_named_there_is_nothing_to_go_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _session(monkeypatch, ["/goto 4", "/again", "/skip", "/hint", "/quit"]) == 0
    assert capsys.readouterr().out.count("the course begins with a text") == 4
    assert not Journal(tmp_path / "runs").events()


def test_from_building_one_goes_back_to_a_lesson_also_in_a_new_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(TEXT)
    _session(monkeypatch, ["t.txt", "/goto build", "/quit"])
    assert _session(monkeypatch, ["/goto guess", "/quit"]) == 0
    assert "── 1 You are" in capsys.readouterr().out


def _session(monkeypatch: pytest.MonkeyPatch, typed: list[str]) -> int:
    lines = iter(typed)
    monkeypatch.setattr(screen, "read", lambda prompt: next(lines))
    return tutor.learn(run_command)


@pytest.mark.parametrize(
    "name", ["my  great   book, the second edition of my notes.txt", 'it\'s a "book" with $ and quotes in its name.txt']
)
def test_a_command_on_several_lines_is_the_same_for_a_shell(name: str) -> None:
    command = f"minigpt train {quoted(name)} --preset tiny-run --arch plain --without positions --name order-2"
    lines = screen.command_lines(command, 60)
    assert len(lines) > 1
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == shlex.split(command)


def test_a_text_that_was_moved_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moved.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    journal = Journal(tmp_path / "runs")
    journal.append("doctor", 0, "started", {"text": str(tmp_path / "gone.txt"), "seed": 7})
    journal.append("count", 0, "entered")
    assert _session(monkeypatch, ["/again", "moved.txt", "/quit"]) == 0
    progress = Progress(journal.events())
    assert (progress.text, progress.seed) == (str(tmp_path / "moved.txt"), 7)
    assert progress.place.lesson == "count"


def test_no_screen_is_larger_than_80_columns_and_18_rows(played: Played) -> None:
    screens = "\n".join(played.lines).split("\n── ")[1:]
    assert len(screens) > 20
    for text in screens:
        rows = re.split(r"\n(?:>|Enter continues:|Your (?:bet|answer):|40 left.*|text:)(?:\n|$)", text)[0].rstrip("\n").splitlines()
        assert len(rows) <= screen.ROWS, text
        assert max(map(len, rows)) <= screen.COLUMNS, text


def test_an_hour_is_enough_by_construction() -> None:
    assert sum(lesson.minutes for lesson in lessons()) <= 60


def test_every_outcome_that_can_be_measured_has_its_text() -> None:
    for lesson in lessons():
        bets = {step.id: step for step in lesson.steps if isinstance(step, Bet)}
        for step in lesson.steps:
            if isinstance(step, Reveal):
                assert {option.id for option in bets[step.bet].options} == set(OUTCOMES[step.outcome][1]), lesson.name


def test_before_acting_there_are_at_most_60_words_of_why() -> None:
    for lesson in lessons():
        assert len(lesson.why.split()) <= 60, lesson.name
