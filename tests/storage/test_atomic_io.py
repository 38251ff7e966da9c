"""Files are written whole or not at all, and read within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minigpt_cli.errors import MiniGPTError, RunDamaged
from minigpt_cli.runstore import directory
from minigpt_cli.runstore.records import now
from minigpt_cli.storage import atomic_io


def test_write_atomic_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    atomic_io.write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()


def test_write_atomic_into_nowhere_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MiniGPTError, match="cannot write"):
        atomic_io.write_atomic(tmp_path / "no" / "file", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MiniGPTError):
        atomic_io.write_atomic(tmp_path / "folder", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_grows_beyond_its_limit_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    monkeypatch.setattr(os, "read", lambda fd, n: b"x" * n)
    with pytest.raises(RunDamaged, match="grew"):
        atomic_io.read_bounded(tmp_path / "file", 20)


def test_missing_and_unreadable_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunDamaged, match="missing"):
        atomic_io.read_json(tmp_path / "no.json")
    with pytest.raises(RunDamaged, match="missing"):
        directory.read_record(tmp_path / "no.json")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    for read in (atomic_io.read_json, directory.read_record):
        with pytest.raises(RunDamaged, match="Permission denied"):
            read(tmp_path / "no.json")


def test_room_on_the_disk_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_io.check_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(MiniGPTError, match=r"free and .* are needed"):
        atomic_io.check_space(tmp_path, 1 << 60)

    def refuse(_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "statvfs", refuse)
    atomic_io.check_space(tmp_path, 1 << 60)


@pytest.mark.parametrize(
    ("n", "shown"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (1 << 40, "1024.0 GiB")]
)
def test_sizes_have_readable_units(n: int, shown: str) -> None:
    assert atomic_io.size(n) == shown


def test_an_unknown_system_error_keeps_its_own_words() -> None:
    assert str(atomic_io.explain(OSError(9999, "strange"), "save")) == "cannot save: strange"
    assert str(atomic_io.explain(OSError("no number"), "save")) == "cannot save: no number"


def test_one_line_cuts_and_cleans() -> None:
    assert atomic_io.one_line("a\n\x1b[31mb\tc") == "a [31mb c"
    assert atomic_io.one_line("x" * 10, 5) == "xxxx…"
    assert atomic_io.first_line_of([]) == "not valid"
    assert now().endswith("Z")


def test_a_file_that_somebody_reads_on_windows_is_replaced_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, replace = iter([PermissionError, PermissionError]), os.replace

    def as_on_windows(source: Path, target: Path) -> None:
        for error in refusals:
            raise error(13, "in use", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", as_on_windows)
    monkeypatch.setattr(atomic_io, "RENAME_PATIENCE_S", 5.0)
    atomic_io.write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    monkeypatch.setattr(atomic_io, "RENAME_PATIENCE_S", 0.0)
    refusals = iter([PermissionError])
    with pytest.raises(MiniGPTError, match="cannot write"):
        atomic_io.write_atomic(tmp_path / "file", "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
