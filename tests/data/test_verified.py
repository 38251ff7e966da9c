"""Token files are hashed, and texts read, the first time, when they changed, and when that is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.config import DataConfig
from minigpt_cli.data import scanned, verified
from minigpt_cli.data.dataset import Dataset, open_dataset, read_record
from minigpt_cli.data.encoding import prepared
from minigpt_cli.data.text_reader import Text
from minigpt_cli.errors import RunDamaged


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 20)
    monkeypatch.setattr(verified, "_SETTLED_NS", 0)
    found = prepared(DataConfig(source=str(tmp_path / "text.txt")), tmp_path / "data")
    return open_dataset(found.dir)


@pytest.fixture
def hashed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the token files that are hashed from here on."""
    names: list[str] = []
    digest: Callable[..., Any] = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: names.append(Path(file.name).name) or digest(file, kind))
    monkeypatch.setattr("minigpt_cli.data.dataset.open_regular", lambda path: path)
    return names


def test_what_was_hashed_is_not_hashed_again(dataset: Dataset, hashed: list[str]) -> None:
    open_dataset(dataset.dir)
    assert hashed == []
    open_dataset(dataset.dir, verify=True)
    assert hashed == ["train.bin", "val.bin"]


@pytest.mark.parametrize("change", ["touched", "replaced", "copied"])
def test_a_file_that_may_have_changed_is_hashed_again(change: str, dataset: Dataset, hashed: list[str]) -> None:
    path = dataset.dir / "val.bin"
    stat, data = path.stat(), path.read_bytes()
    if change == "copied":
        path.rename(path.with_suffix(".old"))
    if change != "touched":
        path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copying program would: the time of the last change is kept
    open_dataset(dataset.dir)
    assert hashed == ["val.bin"]


def test_a_changed_file_of_the_same_size_and_time_is_refused(dataset: Dataset) -> None:
    path = dataset.dir / "train.bin"
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(data[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(RunDamaged, match="is damaged"):
        open_dataset(dataset.dir)


def test_what_the_disk_changed_is_found_by_hashing_anew(dataset: Dataset) -> None:
    path = dataset.dir / "train.bin"
    path.write_bytes(path.read_bytes()[::-1])
    note = verified.Verified(dataset.dir)
    with path.open("rb") as file:
        note.has("train.bin", file, read_record(dataset.dir).splits["train"].file_sha256)
    note.save()
    open_dataset(dataset.dir)  # the file is as the note says that it was when its hash was right
    with pytest.raises(RunDamaged, match="is damaged"):
        open_dataset(dataset.dir, verify=True)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"train.bin": 3}'])
def test_a_damaged_note_means_nothing(content: str, dataset: Dataset, hashed: list[str]) -> None:
    (dataset.dir / verified.VERIFIED).write_text(content)
    open_dataset(dataset.dir)
    assert hashed == ["train.bin", "val.bin"]


def test_what_changed_just_now_is_hashed_until_it_has_settled(dataset: Dataset, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (dataset.dir / verified.VERIFIED).unlink()
    monkeypatch.setattr(verified, "_SETTLED_NS", 10**15)
    open_dataset(dataset.dir)
    open_dataset(dataset.dir)
    assert hashed == ["train.bin", "val.bin"] * 2


# Texts


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are read from here on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verified, "_SETTLED_NS", 0)
    Path("text.txt").write_text("the cat sat on the mat\n" * 20)
    names: list[str] = []
    scan = Text.scan
    monkeypatch.setattr(Text, "scan", lambda self: names.append(self.name) or scan(self))
    monkeypatch.delenv("MINIGPT_DATA_DIR", raising=False)
    return names


def test_a_text_that_was_read_is_not_read_again(read: list[str]) -> None:
    Path("notes").mkdir()
    Path("notes/a.md").write_text("a note\n" * 40)
    Path("notes/b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    for source in ("text.txt", "notes", ("text.txt", "notes")):
        first, again = (prepared(DataConfig(source=source)) for _ in range(2))
        assert (again.key, again.label, again.origins, again.notices) == (first.key, first.label, first.origins, first.notices)
        assert again.text("train") == first.text("train")
    assert read == ["text.txt", "notes", "text.txt notes"]
    prepared(DataConfig(source="text.txt"), verify=True)
    assert read[3:] == ["text.txt"]
    for _ in range(2):
        prepared(DataConfig(source="text.txt"), out=Path("t"))
    assert read[4:] == ["text.txt"]


@pytest.mark.parametrize(
    "change", ["other text", "touched", "replaced", "another file", "a file less", "damaged tokens", "settings", "fresh"]
)
def test_a_text_that_may_have_changed_is_read_again(change: str, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("notes")
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(f"this is {name}\n" * 20)
    before = prepared(DataConfig(source="notes"))
    path, settings = folder / "a.txt", {}
    stat, content = path.stat(), path.read_text()
    match change:
        case "other text":
            path.write_text(content.replace("this", "that"))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        case "touched":
            path.touch()
        case "replaced":
            path.rename("old.txt")
            path.write_text(content)
        case "another file":
            (folder / "c.txt").write_text("more\n")
        case "a file less":
            path.unlink()
        case "damaged tokens":
            (before.dir / "train.bin").write_bytes(b"")
        case "settings":
            settings["train_frac"] = 0.8
        case "fresh":
            monkeypatch.setattr(verified, "_SETTLED_NS", 60 * 10**9)
    found = prepared(DataConfig(source="notes", **settings))
    assert read == ["notes", "notes"]
    assert ("that" in found.text("train")) == (change == "other text")


def test_what_a_library_reads_is_read_each_time(read: list[str]) -> None:
    Path("page.html").write_text("<p>the cat sat on the mat</p>" * 20)
    for _ in range(2):
        prepared(DataConfig(source="page.html"))
    assert read == ["page.html", "page.html"]


def test_a_note_that_is_damaged_or_of_another_folder_is_not_trusted(read: list[str]) -> None:
    made = prepared(DataConfig(source="text.txt"))
    other = prepared(DataConfig(source="text.txt", tokenizer="byte"))
    note = (made.dir / scanned.SCANNED).read_text()
    for content in (note.replace(made.key, other.key), "{}", "", "[1]", note.replace('"notices":[', '"notices":[1,')):
        (made.dir / scanned.SCANNED).write_text(content)
        assert prepared(DataConfig(source="text.txt")).key == made.key
    assert len(read) == 7
