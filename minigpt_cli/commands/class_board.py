"""minigpt runs leaderboard --class FOLDER: the runs and bets that a class handed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_cli.display import console, waiting

if TYPE_CHECKING:
    from minigpt_cli.evaluation.eval_target import Target
    from minigpt_cli.evaluation.handed_in import Entry, Student


def class_board(folder: Path, *, data: str | None, html: Path | None, json: bool) -> None:
    """Rank a class, on the text `data` if there is one, and print it; with `html` also write the page."""
    from minigpt_cli.display.class_board import ClassBoard, print_class
    from minigpt_cli.evaluation import class_board as evaluation
    from minigpt_cli.evaluation.evaluate_run import read_text
    from minigpt_cli.evaluation.handed_in import students_in

    waiting.show("reading what the class handed in")
    target = None if data is None else read_text(data)
    for notice in target.notices if target else ():
        console.notice(notice)
    students = students_in(folder)
    problems = [(student.name, line) for student in students for line in student.problems]
    entries = list(_scored(students, target, problems))
    found = evaluation.summary(students)
    problems += [(name, f"{n} entries of the journal do not hold what they should") for name, n in found.unreadable.items()]
    waiting.remove()
    board = ClassBoard(folder.resolve().name, len(students), target, evaluation.ranked(entries), found, problems)
    if json:
        console.write_json(evaluation.as_document(board.boards, found, problems))
    else:
        print_class(board)
    if html is not None:
        from minigpt_cli.display.pages.class_board import class_page
        from minigpt_cli.storage.atomic_io import check_parent, write_atomic

        check_parent(html)
        write_atomic(html, class_page(board))
        console.notice(f"wrote {html}")


def _scored(students: Sequence[Student], target: Target | None, problems: list[tuple[str, str]]) -> Iterator[Entry]:
    """The score of every run; what is to be said about one is added to `problems`."""
    from minigpt_cli.evaluation.handed_in import as_recorded, rescored

    with console.progress("scoring the runs") as advance:
        for student in students:
            scored = as_recorded(student) if target is None else rescored(student, target, partial(advance, f"scoring {student.name}"))
            for entry, lines in scored:
                problems += [(student.name, line) for line in lines]
                if entry is not None:
                    yield entry
