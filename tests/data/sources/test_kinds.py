"""Every kind of file gives its documents, whatever it is called, and however it is packed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import samples
from harness.samples import SAMPLES, TEXTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt_cli import registry
from minigpt_cli.config import DataConfig
from minigpt_cli.data.chat import learned_chats
from minigpt_cli.data.encoding import prepared
from minigpt_cli.data.sources import decoding
from minigpt_cli.data.sources import texts as files
from minigpt_cli.data.sources.contract import NotText, Source
from minigpt_cli.data.sources.detect import kind_of, kinds
from minigpt_cli.data.sources.files import File
from minigpt_cli.data.sources.open_source import open_source
from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.runstore.records import Corpus, RunRecord

JOINED = {
    "plain.txt": "\n", "utf16.txt": "\n", "page.html": "\n\n", "book.epub": "\n\n", "letter.docx": "\n",
    "plain.txt.gz": "\n", "plain.txt.bz2": "\n", "page.html.zst": "\n\n",
}  # fmt: skip
"""Between what stand the texts of a sample that is one document."""


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def documents(source: Source) -> dict[str, str]:
    return {document.name: "".join(piece.text for piece in document.pieces) for document in source.documents()}


def texts(name: str, content: bytes | None = None, **options: Any) -> list[str]:
    """The documents of a file of this name."""
    if content is not None:
        Path(name).write_bytes(content)
    source = open_source(name, options=DataConfig(**options))
    found = list(documents(source).values())
    assert list(documents(source).values()) == found  # as often as asked for
    return found


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("chats.jsonl", "paper.pdf")])
def test_every_kind_gives_its_documents(name: str) -> None:
    expected = [JOINED[name].join(TEXTS)] if name in JOINED else list(TEXTS)
    assert texts(name, SAMPLES[name]()) == expected


def test_a_pdf_gives_its_pages() -> None:
    assert texts("paper.pdf", SAMPLES["paper.pdf"]()) == ["One day\nThey said"]


def test_every_kind_of_the_registry_has_a_sample() -> None:
    found = set()
    for name, make in SAMPLES.items():
        Path(name).write_bytes(make())
        found.add(kind_of(File(name, Path(name)))[0].what)
    assert found == {kind.what for kind in kinds().values()}
    assert len(found) == len(registry.KINDS)


@pytest.mark.parametrize("name", ["rows.parquet", "book.epub", "letter.docx", "paper.pdf", "plain.txt.gz", "utf16.txt"])
@pytest.mark.parametrize("called", ["x.txt", "x.dat", "x"])
def test_what_is_known_by_its_content_may_have_any_name(name: str, called: str) -> None:
    assert texts(called, SAMPLES[name]()) == texts(name, SAMPLES[name]())


@pytest.mark.parametrize("called", ["x.dat", "x", "README.md", "x.py", "UPPER.TXT", "x.text.old"])
def test_text_is_text_whatever_its_suffix(called: str) -> None:
    assert texts(called, samples.PLAIN) == [samples.PLAIN.decode()]


def test_rows_are_named_by_their_lines() -> None:
    Path("a.jsonl").write_bytes(b'{"text": "one"}\n\n{"text": "two"}\n')
    assert documents(open_source("a.jsonl")) == {"a.jsonl:1": "one", "a.jsonl:3": "two"}
    Path("a.csv").write_bytes(b'id;text\r\n1;"one\r\nmore"\r\n2;two\r\n')
    assert documents(open_source("a.csv")) == {"a.csv:3": "one\r\nmore", "a.csv:4": "two"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"story": "one", "x": 1}\n{"story": "two"}\n'),
        ("a.json", b'[{"story": "one", "x": 1}, {"story": "two"}]'),
        ("a.csv", b"story,x\none,1\ntwo,2\n"),
        ("a.tsv", b"x\tstory\n1\tone\n2\ttwo\n"),
        ("a.jsonl", b'{"prompt": "no", "completion": "no", "story": "one"}\n{"story": "two"}\n'),
        ("a.jsonl", '\ufeff{"story": "one"}\r\n{"story": "two"}\r\n'.encode()),
        ("a.csv", "\ufeffstory,x\r\none,1\r\ntwo,2\r\n".encode("utf-16")),
    ],
)
def test_another_field_can_be_asked_for(name: str, content: bytes) -> None:
    assert texts(name, content, text_field="story") == ["one", "two"]


def test_parquet_gives_the_column_asked_for_and_leaves_out_what_is_null() -> None:
    Path("a.parquet").write_bytes(samples.parquet({"text": ["no"] * 4, "story": ["one", None, "", "two"]}, row_group_size=2))
    source = open_source("a.parquet", options=DataConfig(text_field="story"))
    assert documents(source) == {"a.parquet:1": "one", "a.parquet:4": "two"}
    assert source.notices == ["skipped in a.parquet: 2 empty documents, the first is a.parquet:2"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["one", "two"], ["one", "two"]),
        ([["one", "more"], ["two"]], ["one\nmore", "two"]),
        ([{"title": "t", "author": "a", "paragraphs": ["one", "more"]}], ["one\nmore"]),
        ([{"text": ["one", "more"]}, {"text": "two"}], ["one\nmore", "two"]),
        ({"title": "t", "paragraphs": ["one", "more"]}, ["one\nmore"]),
        ({"text": "one"}, ["one"]),
        ([], []),
    ],
)
def test_json_gives_texts_and_joins_lists_of_lines(value: Any, expected: list[str]) -> None:
    assert texts("a.json", json.dumps(value).encode()) == expected


def test_html_gives_what_a_browser_shows() -> None:
    page = """<!doctype html><html><head><meta charset="iso-8859-1"><title>T</title><style>p {}</style></head><body>
    <h1>A  title</h1><p>One <b>bold</b>
    word,<br>and <span hidden>no</span>more.</p><ul><li>a</li><li>b &amp; c</li></ul><pre>  kept
      so</pre><script>no()</script><table><tr><td>1</td><td>caf\u00e9</td></tr></table></body></html>"""
    expected = "A title\n\nOne bold word,\nand more.\n\na\nb & c\n\n  kept\n      so\n\n1\tcaf\u00e9"
    (found,) = texts("a.html", page.encode("latin-1"))
    assert [line.rstrip("\t ") for line in found.split("\n")] == expected.split("\n")


def test_a_page_deeper_than_python_can_recurse_is_read() -> None:
    assert texts("deep.html", b"<div>" * 2000 + b"deep") == ["deep"]
    with pytest.raises(UsageError, match=r"deeper\.html cannot be read as HTML: its elements are nested too deeply"):
        texts("deeper.html", b"<div>" * 3000 + b"deep")


def test_a_book_is_read_in_the_order_of_its_spine_with_the_entities_of_html() -> None:
    pages = {"b.xhtml": "caf&eacute;&nbsp;&amp; &lt;x&gt;", "a.xhtml": "second<script src='x'/><i> word</i>"}
    assert texts("a.epub", samples.epub(pages)) == ["caf\u00e9\u00a0& <x>\n\nsecond word"]


TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=30)


@given(st.lists(TEXT, min_size=1, max_size=5), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_texts_are_read_back_from_rows(rows: list[str], name: str) -> None:
    table = io.StringIO()
    csv.writer(table, delimiter="\t" if name == "a.tsv" else ",").writerows([["id", "text"], *enumerate(rows)])
    content = {
        "a.jsonl": samples.jsonl([{"text": row} for row in rows]),
        "a.json": json.dumps(rows).encode(),
        "a.parquet": samples.parquet({"text": list(rows)}),
    }.get(name, table.getvalue().encode())
    try:
        assert texts(name, content) == [row for row in rows if row]
    except NotText:
        assert sum(row.count("\0") for row in rows) > 0  # mostly NULs


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20), max_size=6), st.integers(1, 9))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lines_are_read_back_wherever_blocks_end(rows: list[str], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK", block)
        try:
            assert texts("a.txt", "\n".join(rows).encode(), documents="lines") == [row for row in rows if row]
        except NotText:
            assert sum(row.count("\0") for row in rows) > 0


# What a document is


@pytest.mark.parametrize(
    ("how", "content", "expected"),
    [
        ("lines", "emma\nolivia\r\n\nava", ["emma", "olivia", "ava"]),
        ("file", "emma\nolivia\n", ["emma\nolivia\n"]),
        ("---", "one\nmore\n\n---\n\ntwo\n---\nthree", ["one\nmore", "two", "three"]),
        ("---", "one --- more\n ---\n----\n", ["one --- more\n ---\n----"]),
        ("<end>", "one\r\n<end>\r\n\r\ntwo\r\n<end>\r\n", ["one", "two"]),
    ],
)
def test_documents_says_what_a_document_is(how: str, content: str, expected: list[str]) -> None:
    assert texts("a.txt", content.encode(), documents=how) == expected


def test_rows_of_a_file_can_be_one_document() -> None:
    assert texts("a.jsonl", b'{"text": "one"}\n{"text": "two\\n"}\n{"text": "three"}\n', documents="file") == ["one\ntwo\nthree"]


# Folders


def test_a_folder_reads_every_kind_and_counts_what_is_not_text(tmp_path: Path) -> None:
    for name, content in {
        "b.txt": b"plain", "a/rows.jsonl": b'{"text": "one"}\n{"text": "two"}\n', "c.pdf": samples.pdf(["page"]),
        "x.png": b"\x89PNG\r\n\x1a\n" + bytes(100), "y.png": b"\x89PNG\r\n\x1a\n" + bytes(200), "scan.pdf": samples.pdf([""]),
        "settings.json": b'{"a": 1}', "data.bin": bytes(range(256)) * 4,
    }.items():  # fmt: skip
        (tmp_path / "mixed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mixed" / name).write_bytes(content)
    source = open_source("mixed")
    assert documents(source) == {
        "mixed/a/rows.jsonl:1": "one", "mixed/a/rows.jsonl:2": "two", "mixed/b.txt": "plain", "mixed/c.pdf": "page",
    }  # fmt: skip
    (notice,) = source.notices
    assert notice == (
        "skipped in mixed, for they are not text: 2 × PNG image (mixed/x.png, …), 1 × binary data, not text (mixed/data.bin), "
        "1 × PDF without a text layer (mixed/scan.pdf), 1 × JSON without a text (mixed/settings.json)"
    )


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_the_kind_of_each_file_is_found_once_however_often_the_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"a.txt": b"text", "b.jsonl": b'"row"\n', "c.png": b"\x89PNG" + bytes(range(256)), "d.gz": gzip.compress(b"in it")}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    asked: list[str] = []
    monkeypatch.setattr(files, "kind_of", lambda source, encoding: asked.append(source.path.name) or kind_of(source, encoding))
    source = open_source(str(tmp_path))
    read = [[document.name.rpartition("/")[2] for document in source.documents()] for _ in range(3)]
    assert read == [["a.txt", "b.jsonl:1", "d.gz"]] * 3
    assert source.skipped == {"PNG image": 1}
    assert sorted(asked) == ["a.txt", "b.jsonl", "c.png", "d.gz"]


def test_files_that_git_ignores_and_folders_of_minigpt_stay_out(tmp_path: Path) -> None:
    books = tmp_path / "books"
    put(
        books,
        "a.txt",
        "b.log",
        "keep.log",
        "sub/c.txt",
        "sub/d.log",
        "build/x.txt",
        "data/t/dataset.json",
        "data/t/tokenizer.json",
        "data/t/x",
    )
    put(books, "runs/r/run.json", "runs/r/config.json", "runs/r/metrics.jsonl", "build2/x.txt")
    (books / ".gitignore").write_text("*.log\n!keep.log\nbuild/\n")
    (books / "sub" / ".gitignore").write_text("!d.log\n")
    assert list(documents(open_source("books"))) == [
        f"books/{name}" for name in ("a.txt", "build2/x.txt", "keep.log", "sub/c.txt", "sub/d.log")
    ]


def test_backups_that_editors_leave_are_no_documents(tmp_path: Path) -> None:
    put(tmp_path / "books", "a.md", "a.md~", "b.txt", "b.txt.bak", ".b.txt.swp", "c.tmp")
    assert list(documents(open_source("books"))) == ["books/a.md", "books/b.txt"]


def test_include_and_exclude_choose_files(tmp_path: Path) -> None:
    put(tmp_path / "notes", "a.md", "b.txt", "drafts/c.md", "drafts/d.txt")

    def names(**options: Any) -> list[str]:
        return [name.removeprefix("notes/") for name in documents(open_source("notes", options=DataConfig(**options)))]

    assert names(include=["*.md"]) == ["a.md", "drafts/c.md"]
    assert names(exclude="drafts/") == ["a.md", "b.txt"]
    assert names(include=["*.md", "b.*"], exclude=["drafts/**"]) == ["a.md", "b.txt"]
    with pytest.raises(UsageError, match="none of its 4 files is chosen by --include and --exclude"):
        names(include=["*.rst"])


def test_conversations_in_a_folder_of_texts_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    put(folder, "a.txt")
    (folder / "chats.jsonl").write_bytes(SAMPLES["chats.jsonl"]())
    with pytest.raises(UsageError, match=r"mixed/chats\.jsonl holds conversations and mixed/a\.txt does not"):
        documents(open_source("mixed"))
    (folder / "a.txt").unlink()
    (folder / "more.jsonl").write_bytes(SAMPLES["chats.jsonl"]())
    source = open_source("mixed")
    assert source.split_by == "conversation"
    assert len(documents(source)) == 6


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "cp1251", "utf-8-sig"])
def test_a_named_encoding_is_read(encoding: str) -> None:
    text = "Съешь же ещё этих мягких французских булок\n" * 9
    assert texts("a.txt", text.encode(encoding), encoding=encoding) == [text]


def test_another_encoding_is_guessed_and_can_be_named() -> None:
    text = "Съешь же ещё этих мягких французских булок, да выпей чаю.\n" * 20
    with pytest.raises(UsageError, match=r"a\.txt is not UTF-8 at byte 0 .*read it with --encoding cp1251"):
        texts("a.txt", text.encode("cp1251"))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "El niño comió una piña en el jardín; la señora habló después con su compañero. "),
        ("cp1252", "Le garçon a mangé une pêche près de la forêt; l’été dernier, l’élève était là. "),
        ("cp1251", "Съешь же ещё этих мягких французских булок, да выпей чаю. "),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"),
        ("gb18030", "床前明月光，疑是地上霜。举头望明月，低头思故乡。春眠不觉晓，处处闻啼鸟。"),
    ],
)
def test_the_words_of_a_guessed_encoding_are_shown_beside_those_of_the_most_frequent(encoding: str, text: str) -> None:
    with pytest.raises(UsageError) as refused:
        texts("a.txt", ((text + "\n") * 300).encode(encoding))
    assert f"--encoding {encoding}" in str(refused.value)
    assert next(word for word in re.split(r"[\s。，]", text) if not word.isascii()) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift_jis", "gb18030"])
def test_a_named_encoding_reads_what_is_in_no_other(encoding: str, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    words = "「日本」の" * 20 if encoding in ("shift_jis", "gb18030") else "Größe, façade " * 20
    (folder / "a.txt").write_bytes(words.encode(encoding))
    (folder / "b.txt").write_bytes(("x" * 70_000 + words).encode())
    (folder / "c.txt").write_bytes(words.encode("utf-16"))
    (folder / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)
    (folder / "e.bin").write_bytes(bytes(range(256)) * 9)
    (folder / "f.jsonl").write_bytes(json.dumps({"text": words}, ensure_ascii=False).encode())
    source = open_source("mixed", options=DataConfig(encoding=encoding))
    found = [(document.encoding, "".join(piece.text for piece in document.pieces)) for document in source.documents()]
    assert found == [(encoding, words), ("", "x" * 70_000 + words), ("utf-16", words), ("", words)]
    assert source.skipped == {"PNG image": 1, "binary data, not text": 1}


@pytest.mark.parametrize("encoding", ["iso2022_jp", "utf-7", "utf-16-le", "hz"])
def test_an_encoding_that_writes_ascii_bytes_is_read_where_it_is_named(encoding: str) -> None:
    assert texts("a.txt", ("床前明月光" * 30).encode(encoding), encoding=encoding) == ["床前明月光" * 30]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding_and_is_no_character(encoding: str) -> None:
    assert texts("a.txt", "漢字 🙂 text".encode(encoding)) == ["漢字 🙂 text"]


@pytest.mark.parametrize("name", ["none", "hex", "\x00"])
def test_an_unknown_encoding_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not an encoding that Python knows"):
        DataConfig(encoding=name)


# Extras


@pytest.mark.parametrize(
    ("name", "module"),
    [("rows.parquet", "pyarrow"), ("page.html", "lxml"), ("book.epub", "lxml"), ("letter.docx", "lxml"), ("paper.pdf", "pypdf")],
)
def test_a_missing_library_names_its_extra(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(name).write_bytes(SAMPLES[name]())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'minigpt-cli\[documents\]'"):
        documents(open_source(name))


# What is recorded


def test_one_source_is_recorded_as_ever_and_several_as_a_list() -> None:
    for typed, kept in (("a.txt", "a.txt"), (["a.txt"], "a.txt"), ([], ""), (["a.txt", "b/"], ["a.txt", "b/"])):
        config = DataConfig.model_validate({"source": typed})
        assert json.loads(config.model_dump_json())["source"] == kept
        assert DataConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("label", "chats", "expected"),
    [("a.jsonl", None, True), ("a.txt", None, False), ("a.jsonl", False, False), ("a", True, True)],
)
def test_a_record_says_whether_its_text_is_conversations(label: str, chats: bool | None, expected: bool) -> None:
    corpus = Corpus(label=label, sha256="a" * 64, **({} if chats is None else {"chats": chats}))
    assert learned_chats(RunRecord.model_construct(corpus=corpus)) is expected


def test_rows_of_texts_train_a_run_that_is_no_chat(tmp_path: Path) -> None:
    Path("a.jsonl").write_bytes(samples.jsonl([{"text": f"{i} {text}"} for i in range(9) for text in TEXTS]))
    assert not prepared(DataConfig(source="a.jsonl"), tmp_path / "data").chats
    Path("a.jsonl").write_bytes(samples.jsonl([{"prompt": text, "completion": f"{i}"} for i in range(9) for text in TEXTS]))
    assert prepared(DataConfig(source="a.jsonl"), tmp_path / "data").chats
