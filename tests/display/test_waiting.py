"""Something true is on a terminal from the first moment of a command, and nothing of it stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

from harness.terminal import run_on_terminal


@pytest.mark.parametrize("command", [["train", "text.txt"], ["eval", "no-such-run"]])
def test_something_is_on_the_screen_within_a_third_of_a_second(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be " * 500)
    seen = (run_on_terminal(command, tmp_path, until=f"minigpt {command[0]}: starting").first_s for _ in range(12))
    assert any(seconds < 0.3 for seconds in seen)  # once is enough: other processes use the same cores


def test_the_first_line_is_removed_before_anything_else_is_written(tmp_path: Path) -> None:
    text = run_on_terminal(["eval", "no-such-run"], tmp_path).text
    _, line, rest = text.partition("minigpt eval: starting")
    assert line
    assert "\r\x1b[K" in rest[: rest.index("Error")]


@pytest.mark.parametrize("command", [["--version"], ["runs"], ["train", "--help"]])
def test_what_answers_at_once_has_no_such_line(command: list[str], tmp_path: Path) -> None:
    assert "starting" not in run_on_terminal(command, tmp_path).text
