"""Help pages: few flags first, every flag on request, descriptions across the width, and nothing that only a programmer reads."""

from __future__ import annotations

import re
from typing import Any

import pytest

from minigpt_cli import reference
from minigpt_cli.commands.config_fields import settings
from minigpt_cli.presets.catalog import preset_names

PAGES = ["", "train", "generate", "eval", "compare", "runs", "runs list", "runs leaderboard", "runs plot", "tokenize"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("command", PAGES)
def test_help_fits_and_breaks_no_word(command: str, width: int, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = cli(*command.split(), "--help").out
    body = text[text.index("\n\n", text.index("Examples:")) :]
    commands = [line for line in text.splitlines() if re.match(r"  minigpt \S.*\S$", line) and "   " not in line.strip()]  # lines to copy
    assert not [line for line in text.splitlines() if len(line) > width and line not in commands]
    assert not re.search(r"<\w+>|<=x|<list|[│╭╰]", body.replace("MINIGPT_<NAME>", ""))


def test_descriptions_get_the_width(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    described = [line for line in cli("train", "--help-all").out.splitlines() if line.startswith(" " * 28)]
    assert sum(len(line) > 65 for line in described) > len(described) / 4


@pytest.mark.parametrize("width", [60, 120])
def test_exit_codes_stand_below_one_another(width: int, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = cli("--help").out.splitlines()
    first = lines.index("Exit codes of every command:")
    assert [line.split()[0] for line in lines[first + 1 : first + 6]] == ["0", "1", "2", "3", "130"]


def test_train_shows_its_everyday_flags_and_all_on_request(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = cli("train", "--help").out, cli("train", "--help-all").out
    flags = re.findall(r"^  (--[\w-]+)", short, re.M)
    assert 20 <= len(flags) <= 28
    assert len(short.splitlines()) <= 100
    assert "--help-all" in short.splitlines()[-1]
    assert all(setting.flag in whole for setting in settings().values() if setting.is_typed and setting.name != "source")


def test_a_preset_without_a_name_lists_all_with_purpose_and_time(cli: Any) -> None:
    done = cli("train", "--preset")
    assert done.code == 0
    heads = [line for line in done.out.splitlines() if line and not line.startswith(" ")][:-1]
    assert [line.split()[0] for line in heads] == preset_names()
    assert all(re.search(r"parameters .*(steps, about \d|less than a minute|for GPUs|\d:\d\d)", line) for line in heads)


def test_no_flag_shows_a_type_of_the_code() -> None:
    assert not re.findall(r"^- `--.*(?:<class|annotation=).*", reference.page(), re.M)
