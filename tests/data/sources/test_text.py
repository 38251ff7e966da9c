"""Where text comes from, exactly as it is written."""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from minigpt_cli import registry
from minigpt_cli.data.sources import decoding as texts
from minigpt_cli.data.sources.contract import Document, Source
from minigpt_cli.data.sources.corpora import named_corpus
from minigpt_cli.data.sources.files import File
from minigpt_cli.data.sources.open_source import open_source
from minigpt_cli.errors import UsageError

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
ODD = "\ufeffone\r\ntwo\rthree\x00\x0b\u2028é日😀\n"


def text(document: Document) -> str:
    return "".join(piece.text for piece in document.pieces)


def documents(source: Source) -> dict[str, str]:
    return {document.name: text(document) for document in source.documents()}


def read(source: Source) -> str:
    return "".join(map(text, source.documents()))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(texts, "BLOCK", 7)
    monkeypatch.delenv("MINIGPT_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(ODD.encode())
    return path


# What can be opened


def test_a_file_gives_its_characters_unchanged(text_file: Path) -> None:
    source = open_source("text.txt")
    assert read(source) == ODD
    assert read(source) == ODD  # as often as one likes
    assert source.label == "text.txt"
    assert source.n_bytes == len(ODD.encode())
    assert source.fetch(lambda done, total: None) is None  # type: ignore[func-returns-value]


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=50))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_unicode_text_is_read_back(tmp_path: Path, anything: str) -> None:
    (tmp_path / "any.txt").write_bytes(anything.encode())
    assert read(open_source("any.txt")) == anything


def test_a_folder_gives_its_visible_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    for name, content in {
        "b.txt": "second",
        "a/z.txt": "first\n",
        "a/.hidden": "\xff",
        ".git/x": "no",
        "c.txt": "",
        "d.txt": "last",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    source = open_source("books")
    source.fetch(lambda done, total: None)
    assert documents(source) == {"books/a/z.txt": "first\n", "books/b.txt": "second", "books/d.txt": "last"}
    assert source.n_bytes == len("first\nsecondlast")
    assert source.notices == ["skipped in books: 1 empty document, the first is books/c.txt"]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="the folder none has no text files"):
        read(open_source("none"))


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ODD.encode())))
    source = open_source("-")
    assert source.label == "-"
    source.fetch(lambda done, total: None)
    assert read(source) == ODD
    assert read(source) == ODD  # from a copy


def test_a_pipe_is_read_like_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    if (child := os.fork()) == 0:  # pragma: no cover
        with (tmp_path / "pipe").open("wb") as file:
            file.write(ODD.encode())
        os._exit(0)
    source = open_source("pipe")
    assert read(source) == ODD
    assert read(source) == ODD  # from a copy
    os.waitpid(child, 0)


def test_several_sources_give_their_documents_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two\n")
    source = open_source(["a.txt", "b.txt", "a.txt"])
    assert [text(document) for document in source.documents()] == ["one", "two\n", "one"]
    assert source.label == "a.txt b.txt a.txt"
    assert source.n_bytes == 10
    source.fetch(lambda done, total: None)
    assert read(open_source(["b.txt"])) == "two\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"three")))
    mixed = open_source(["a.txt", "-"])
    assert mixed.n_bytes is None
    assert documents(mixed) == {"a.txt": "one", "standard input": "three"}
    with pytest.raises(UsageError, match="only once"):
        open_source(["-", "-"])


# Bit for bit


def hashed_chunks(source: Source) -> str:
    sha256 = hashlib.sha256()
    for piece in (piece for document in source.documents() for piece in document.pieces):
        data = piece.text.encode()
        sha256.update(len(data).to_bytes(8, "little") + data)
    return sha256.hexdigest()[:16]


def test_a_plain_text_gives_the_chunks_that_it_always_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK", 1 << 18)
    (tmp_path / "long.txt").write_bytes((ODD * 40_000).encode())  # several blocks; characters and line breaks lie across their ends
    assert hashed_chunks(open_source("long.txt")) == "3f23639a6928f551"


def test_a_corpus_gives_the_chunks_that_it_always_gave(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK", 1 << 18)
    assert hashed_chunks(open_source(str(shared_data / "tinyshakespeare.txt"))) == "24118dd1b0b0eeef"


# The default


def test_without_a_source_it_is_input_txt_or_the_embedded_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_source("").label == "python-docs"
    assert open_source([]).label == "python-docs"
    for folder in (Path("data"), tmp_path / "elsewhere"):
        folder.mkdir()
        (folder / "input.txt").write_text("mine")
    assert open_source("").label == "data/input.txt"
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(tmp_path / "elsewhere"))
    assert open_source("").label == str(tmp_path / "elsewhere" / "input.txt")
    assert read(open_source("", Path("data"))) == "mine"


def test_python_docs_is_real_text_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK", 1 << 16)
    source = open_source("python-docs")
    text = read(source)
    assert len(text) > 200_000
    assert text == read(source)
    assert 'The "assert" statement' in text
    assert source.n_bytes is None
    source.fetch(lambda done, total: None)


def test_a_python_without_its_documentation_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UsageError, match="give a text file"):
        read(open_source("python-docs"))


def test_every_corpus_of_the_registry_makes_a_source() -> None:
    for name in registry.CORPORA:
        assert named_corpus(name).label == name


def test_a_file_called_like_a_corpus_wins(tmp_path: Path) -> None:
    (tmp_path / "python-docs").write_text("mine")
    assert read(open_source("python-docs")) == "mine"


# What cannot


@pytest.mark.parametrize(
    ("content", "at", "why"),
    [
        (b"\xff", 0, "invalid start byte"),
        (b"abc\xc3(", 3, "invalid continuation byte"),
        (b"abcdefg" * 3 + b"\x80", 21, "invalid start byte"),  # the first byte of a block
        (b"abcde\xe6\x97", 5, "unexpected end of data"),
        (b"abcde\xe6\x97\xa5\xe6\x97z", 8, "invalid continuation byte"),  # begun in the block before
        (b"a\xed\xa0\x80", 1, "invalid continuation byte"),  # half of a surrogate pair
    ],
)
def test_what_is_not_utf8_is_refused_with_its_byte(content: bytes, at: int, why: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    for path in ("bad.txt", "."):
        with pytest.raises(UsageError, match=rf"bad\.txt is not UTF-8 at byte {at} \(.*{why}"):
            read(open_source(path))


@given(st.binary(max_size=40), st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_byte_named_is_the_one_that_python_names(tmp_path: Path, content: bytes, block: int) -> None:
    assume(
        not content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK", b"%PDF-", b"PAR1", *UTF_16))
    )  # other kinds
    (tmp_path / "any.bin").write_bytes(content)
    try:
        expected = content.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(texts, "BLOCK", block)
            with pytest.raises(UsageError, match=f" at byte {error.start} "):
                read(open_source("any.bin"))
    else:
        assert read(open_source("any.bin")) == expected


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("tinyshakespear", "did you mean 'tinyshakespeare'"),
        ("nothing", "unknown file, folder or corpus 'nothing'"),
        ("missing.txt", "no file or folder missing.txt"),
        ("no/such/place", "no file or folder no/such/place"),
        ("text.txt/inside", "no file or folder"),
        ("nul\x00byte", "cannot read"),
        ("x" * 300, "cannot read"),
        ("/dev/null", "neither a text file nor a folder"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(source: str, complaint: str, text_file: Path) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        open_source(source)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UsageError, match=r"cannot read text\.txt: Permission denied"):
        read(open_source("text.txt"))


def test_a_failing_disk_is_one_line(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(File, "open", lambda self: Failing())
    with pytest.raises(UsageError, match=r"cannot read text\.txt: Input/output error"):
        read(open_source("text.txt"))


def test_chunks_are_never_empty(text_file: Path) -> None:
    (document,) = open_source("text.txt").documents()
    assert all(piece.text for piece in document.pieces)
