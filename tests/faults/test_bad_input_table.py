"""Every command and every bad input: the exit code, one line on stderr, nothing on stdout, no file left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import tiny

from minigpt_cli import cli as cli_module
from minigpt_cli.config import RunConfig
from minigpt_cli.runstore.records import RunRecord, now
from minigpt_cli.runstore.store import RunStore

TINY = tiny.training(2, 1)


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs a command line in this process."""

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["minigpt", *arguments])
        return Done(cli_module.run(arguments), *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, one good, the others not, and bad texts."""
    folder = tmp_path_factory.mktemp("table")
    store = RunStore(folder / "runs")
    (folder / "good.txt").write_text(tiny.text(1500))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_DATA_DIR", str(folder / "data"))
        patch.setenv("MINIGPT_RUNS_DIR", str(folder / "runs"))
        for name in ("good", "fine"):
            assert cli_module.run(["train", str(folder / "good.txt"), "--name", name, *TINY]) == 0
    for name in ("twin-1", "twin-2", "never-saved"):
        run = store.create(name)
        run.write_config(RunConfig())
        run.write_record(RunRecord(name=name, created_at=now()))
    (store.dir / "nothing").mkdir()
    (store.dir / "foreign").mkdir()
    (store.dir / "foreign" / "run.json").write_text('{"name": "someone else\'s"}')
    (store.dir / "link").symlink_to(store.dir / "good")
    _bad_texts(folder)
    return folder


def _bad_texts(folder: Path) -> None:
    texts = {
        "empty": b"",
        "one-character": b"a",
        "too-short": b"abc" * 5,
        "not-utf8": b"abc" * 500 + b"\xff" + b"abc" * 500,
        "cut-utf8": b"abc" * 500 + "é".encode()[:1],
        "surrogate": b"abc" * 500 + b"\xed\xa0\x80" + b"abc" * 500,
    }
    for name, data in texts.items():
        (folder / f"{name}.txt").write_bytes(data)
    (folder / "empty-folder").mkdir()
    (folder / "loop.txt").symlink_to(folder / "loop.txt")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file under `folder` but caches and locks, with size and time of change."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in folder.rglob("*")
        if not p.is_dir() and p.relative_to(folder).parts[0] != "data" and p.name not in (".lock", ".annotations.lock")
    }


def check(done: Done, codes: tuple[int, ...], hint: str = "") -> None:
    assert done.code in codes, done
    assert done.out == "", done
    errors = [line for line in done.err.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1, done
    assert done.err.splitlines()[-1] == errors[0], done
    assert all(c.isprintable() or c == "\n" for c in done.err), done
    assert hint in errors[0], done


RUN_COMMANDS = [
    "eval {}", "generate {}", "compare {} good", "compare good {}", "runs show {}", "runs verify {}", "runs plot {}",
    "runs diff {} good", "runs watch {}",
    "runs tag {} x", "runs note {} x", "runs rename {} other", "runs rm {} --yes", "runs export {} --out exported", "train --resume {}",
    "train good.txt --init-from {}", "eval {} --json", "generate {} --json", "runs show {} --json", "train --resume {} --json",
]  # fmt: skip
UNKNOWN = {
    "a name that is not there": ("nope", ""),
    "a name nearly right": ("goood", "did you mean 'good'"),
    "two runs' beginning": ("twin", "2 runs"),
    "a way out": ("../runs/good", ""),
    "an absolute path": ("/etc/passwd", ""),
    "colours": ("\x1b[31mred", ""),
    "two lines": ("a\nb", ""),
    "five thousand letters": ("x" * 5000, ""),
    "dots": ("..", ""),
    "a dot": (".", ""),
}


@pytest.mark.parametrize("command", RUN_COMMANDS)
@pytest.mark.parametrize("what", UNKNOWN)
def test_a_run_that_is_not_there_is_exit_2(
    what: str, command: str, place: Path, cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, hint = UNKNOWN[what]
    monkeypatch.chdir(place)
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(place / "data"))
    before = tree(place)
    done = cli(*(word.replace("{}", wanted) for word in command.split()))
    loose = "init-from" in command or "runs rm" in command  # one may be a file, too; the other takes whole names alone
    check(done, (2,), "" if loose else hint)
    assert tree(place) == before


WEIGHTS_COMMANDS = [c for c in RUN_COMMANDS if c.split()[0] in ("eval", "generate", "compare", "train") or "export" in c]


@pytest.mark.parametrize("command", WEIGHTS_COMMANDS)
@pytest.mark.parametrize("wanted", ["never-saved", "nothing", "foreign", "link"])
def test_a_run_that_cannot_be_opened_is_one_line(
    wanted: str, command: str, place: Path, cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(place / "data"))
    before = tree(place)
    check(cli(*(word.replace("{}", wanted) for word in command.split())), (1, 2))
    assert tree(place) == before


@pytest.mark.parametrize(
    "command", ["eval", "generate", "compare latest top", "runs show", "runs verify", "runs plot latest", "train --resume latest"]
)
def test_an_empty_store_says_how_to_start(command: str, tmp_path: Path, cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(cli(*command.split()), (2,), "minigpt train")
    assert list(tmp_path.iterdir()) == []


TEXT_COMMANDS = ["train {}", "tokenize {} --out tokens", "eval good --data {}", "compare good fine --data {}"]
BAD_TEXTS = {
    "missing.txt": "missing.txt",
    "empty.txt": "empty",
    "not-utf8.txt": "1500",
    "cut-utf8.txt": "1500",
    "surrogate.txt": "1500",
    "empty-folder": "",
    "loop.txt": "",
    "good.txt/inside": "",
}


@pytest.mark.parametrize("command", TEXT_COMMANDS)
@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a_text_that_cannot_be_read_is_exit_2(
    text: str, command: str, place: Path, cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(place / "data"))
    before = tree(place)
    settings = TINY if command.startswith("train") else []
    check(cli(*(word.replace("{}", text) for word in command.split()), *settings), (2,), BAD_TEXTS[text])
    assert tree(place) == before
    assert not (place / "tokens").exists()


@pytest.mark.parametrize("text", ["one-character.txt", "too-short.txt"])
def test_a_text_too_short_to_train_on_is_exit_2(text: str, place: Path, cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(place / "data"))
    before = tree(place)
    check(cli("train", text, *TINY), (2,))
    assert tree(place) == before


@pytest.mark.parametrize(
    ("name", "code"),
    [("good", 2), ("..", 2), ("a/b", 2), ("\x1b[31m", 2), ("latest", 2), ("top", 2), ("x" * 300, 2), ("-", 2), ("", 2), ("a b", 2)],
)
@pytest.mark.parametrize("command", ["train good.txt --name {}", "runs rename good {}"])
def test_a_name_that_no_run_may_have_is_exit_2(
    command: str, name: str, code: int, place: Path, cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(place / "data"))
    before = tree(place)
    settings = TINY if command.startswith("train") else []
    check(cli(*(name if word == "{}" else word for word in command.split()), *settings), (code,))
    assert tree(place) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("command", ["train good.txt", "tokenize good.txt --out runs/tokens"])
def test_a_folder_that_may_not_be_written_is_exit_1(
    command: str, place: Path, cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "runs").chmod(0o500)
    try:
        check(cli(*command.split(), *(TINY if "train" in command else [])), (1,), "permission")
    finally:
        (place / "runs").chmod(0o700)
