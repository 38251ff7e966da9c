"""The front door: help, versions, exit codes, one line for every mistake, and no torch where none is needed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from minigpt_cli import cli as cli_module
from minigpt_cli.commands.lazy_commands import LazyGroup, load_mount
from minigpt_cli.config import ARCHITECTURES

HEAVY = ("torch", "tokenizers", "matplotlib", "transformers")


def every_command() -> Iterator[tuple[list[str], Any]]:
    """The path and the Typer command of each command whose module is there, groups too."""

    def walk(path: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
        yield path, command
        if not hasattr(command, "commands"):
            return
        mounts = command.mounts if isinstance(command, LazyGroup) else {}
        for name, child in command.commands.items():
            if name not in mounts:
                yield from walk([*path, name], child)
            elif find_spec(mounts[name].target.partition(":")[0]):
                yield from walk([*path, name], load_mount(name, mounts[name]))

    yield from walk([], get_command(cli_module.app))


COMMANDS = list(every_command())


def examples(help_text: str) -> list[str]:
    """The command lines in the Examples block of a help page."""
    block = help_text.split("\n\n")[0]
    lines = [line.strip() for line in block.splitlines() if line.startswith("  minigpt ")]
    return [re.split(r"\s{2,}", line)[0] for line in lines]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_every_help_page_begins_with_examples_that_parse(path: list[str], command: Any) -> None:
    help_text = command.help.replace("\b", "").lstrip("\n")
    assert help_text.startswith("Examples:"), path
    found = examples(help_text)
    assert found
    assert all(len(line) <= 78 for line in help_text.split("\n\n")[0].splitlines())
    for line in found:
        words = shlex.split(line)[1:]
        command_found: Any = get_command(cli_module.app)
        ctx = command_found.make_context("minigpt", [])
        if words[0].startswith("-"):  # an option of minigpt itself
            command_found.make_context("minigpt", words)
            continue
        while hasattr(command_found, "commands"):
            name, command_found, words = command_found.resolve_command(ctx, words)
            ctx = command_found.make_context(name, [*words], parent=ctx, resilient_parsing=hasattr(command_found, "commands"))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_help_exits_0_and_shows_examples_before_options(path: list[str], command: Any, cli: Any) -> None:
    done = cli(*path, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.index("Examples:") < done.out.index("--help")
    assert done.out.count("Examples:") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "runs list",
        "runs leaderboard",
        "runs --help",
        "train --help",
        "train --print-config",
        "runs list --where lr<1",
    ],
)
def test_light_commands_never_import_torch(arguments: str, trained_once: Path) -> None:
    script = f"""
import sys
from minigpt_cli.cli import run
code = run({arguments.split()!r})
print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=trained_once, timeout=60, check=False)
    assert done.stderr.splitlines()[-1] == "[] 0"


def test_help_starts_within_three_times_the_import_of_typer(home: Path) -> None:
    def cpu_seconds(arguments: list[str]) -> float:
        """What the process itself took: on a busy machine the clock on the wall says little."""
        before = os.times()
        subprocess.run([sys.executable, *arguments], capture_output=True, timeout=60, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    sides = [(cpu_seconds(["-m", "minigpt_cli", "--help"]), cpu_seconds(["-c", "import typer"])) for _ in range(7)]
    ours, theirs = (sum(side) for side in zip(*sides, strict=True))
    assert ours <= 3 * theirs


VERBOSE = {
    "minigpt", "python", "torch", "system", "device", "numbers", "kernels", "decoder", "compiler", "cache", "data", "runs", "packages",
    "extras", "test",
}  # fmt: skip


def test_version_is_one_line_and_more_with_v(cli: Any) -> None:
    assert re.fullmatch(r"minigpt \d+\.\d+\.\d+\S*\n", cli("--version").out)
    said = {line.split()[0] for line in cli("--version", "-v").out.splitlines()}
    assert said == VERBOSE


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("trian", "did you mean 'train'"),
        ("train --lerning-rate 1", "unknown flag --lerning-rate"),
        ("train --n-layr 3", "did you mean --n-layer?"),
        ("train --preset nanogpt-cpuu", "did you mean 'nanogpt-cpu'"),
        ("train --n-layer 0", "--n-layer"),
        ("train --n-layer many", "--n-layer"),
        ("train --arch transformer", "--arch"),
        ("train --n-head 3 --n-embd 128", "--n-head 3 does not divide --n-embd 128"),
        ("train --n-experts 4 --arch classic", "--n-experts belongs to --arch moe, and this run is --arch classic"),
        ("train --config nowhere.toml", "nowhere.toml: no such file"),
        ("train --lr nan", "--lr"),
        ("train --lr inf", "--lr"),
        ("train --dropout -0.1", "--dropout"),
        ("train --time-budget soon", "not a duration"),
        ("train missing.txt", "missing.txt"),
        ("train --name ../up", "cannot name a run"),
        ("train --name latest", "latest"),
        ("train --resume nothing", "no runs in"),
        ("train --device mps", "--device mps"),
        ("runs show nothing", "no runs in"),
        ("runs lst", "did you mean 'list'"),
        ("runs list --where arhc=moe", "did you mean 'arch'"),
        ("runs list --where arch=", "a value is missing"),
        ("runs list --sort speeed", "speeed"),
        ("runs leaderboard --budget hours", "--budget hours"),
        ("runs list --json --csv", "cannot be used together"),
        ("runs rm nothing --yes", "no runs in"),
    ],
)
def test_wrong_usage_is_one_line_on_stderr_exit_2_and_nothing_left(arguments: str, hint: str, cli: Any, home: Path) -> None:
    done = cli(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("Error: ")
    assert hint.lower() in done.err.lower()
    assert not (home / "runs").exists()
    assert [entry.name for entry in home.rglob("*") if entry.is_file()] == []


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "empty"),
        (b"a", "1 character"),
        (b"abc" * 7, "too short|cannot fill"),
        (b"good text, then \xff\xfe", "byte 16"),
    ],
)
def test_bad_text_is_one_line_exit_2_and_no_run(content: bytes, hint: str, cli: Any, home: Path) -> None:
    (home / "bad.txt").write_bytes(content)
    done = cli("train", "bad.txt", "--device", "cpu", "--max-steps", "1")
    errors = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert (done.code, done.out, len(errors)) == (2, "", 1), done.err
    assert re.search(hint, errors[0])
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())


@pytest.mark.parametrize("words", [["runs", "list", "--json"], ["train", "--preset"]])
def test_closed_pipe_ends_quietly(make_run: Any, words: list[str]) -> None:
    for number in range(3):
        make_run(f"run-{number}")
    script = f"import sys; from minigpt_cli.cli import run; sys.exit(run({words!r}))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_the_shell_closed_is_no_traceback_and_no_file_takes_its_place(closed: str, make_run: Any) -> None:
    make_run("run")
    numbers = "import os; from minigpt_cli import cli; cli._replace_closed_streams(); assert os.open(os.devnull, os.O_RDONLY) > 2"
    for arguments in (["-m", "minigpt_cli", "runs", "show", "run"], ["-c", numbers]):
        command = f"{shlex.join([sys.executable, *arguments])} {closed}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_escape_sequences_in_arguments_do_not_reach_the_terminal(cli: Any) -> None:
    done = cli("runs", "show", "\x1b[31mred\x07")
    assert done.code == 2
    assert "\x1b" not in done.err
    assert "\x07" not in done.err


def test_keyboard_interrupt_is_130(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minigpt_cli.runstore.store.RunStore.list", interrupted)
    assert cli("runs", "list").code == 130


def test_disk_trouble_is_one_line_exit_1(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any) -> None:
        raise OSError(28, "No space left on device", "runs")

    monkeypatch.setattr("minigpt_cli.runstore.store.RunStore.list", full)
    done = cli("runs", "list")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "No space left" in done.err


def test_lazy_commands_exist_in_their_modules() -> None:
    for name, mount in cli_module.COMMANDS.items():
        module, _, attribute = mount.target.partition(":")
        assert hasattr(import_module(module), attribute), name


def test_completion_completes_without_torch(make_run: Any, home: Path) -> None:
    make_run("shakespeare-1")
    for words, expected in {
        "minigpt tr": {"train"},
        "minigpt runs show sh": {"shakespeare-1"},
        "minigpt train --preset nano": {"nanogpt-cpu", "nanogpt-baby"},
        "minigpt train --arch m": {name for name in ARCHITECTURES if name.startswith("m")},
        "minigpt train tiny": {"tinyshakespeare"},
        "minigpt train --tokenizer b": {"byte", "bpe"},
    }.items():
        environment = os.environ | {"_MINIGPT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        script = "import sys; sys.modules['torch'] = None; from minigpt_cli.cli import run; sys.exit(run([]))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.stderr == ""
        assert set(done.stdout.split()) == expected, words


@pytest.mark.parametrize("native", ["1", "0"])
def test_the_verbose_version_names_the_kernels_and_why_others_are_not_used(native: str) -> None:
    command = [sys.executable, "-m", "minigpt_cli", "--version", "-v"]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MINIGPT_NATIVE": native}, check=True).stdout
    lines = {line.split()[0]: line.partition(" ")[2].strip() for line in said.splitlines()}
    assert lines.keys() == VERBOSE
    assert lines["test"].startswith("a step of classic, modern, moe equals the plain formulas to ")
    assert "search" in lines["extras"]
    if native == "0":
        assert lines["kernels"] == "torch, slower: switched off by MINIGPT_NATIVE=0"
        assert lines["decoder"] == "torch, slower: switched off by MINIGPT_NATIVE=0"
    elif shutil.which("cc"):
        assert lines["kernels"].startswith("C")
        assert lines["decoder"] == "C"
