"""What cannot be read is one line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import samples
from harness.samples import SAMPLES

from minigpt_cli.config import DataConfig
from minigpt_cli.data.encoding import prepared
from minigpt_cli.data.sources import compressed, contract, decoding, json_array, jsonl
from minigpt_cli.data.sources.open_source import open_source
from minigpt_cli.errors import UsageError

CHAT = b'{"prompt": "a", "completion": "b"}\n'
ROW = b'{"text": "one"}\n'


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def encrypted_pdf() -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer, out = PdfWriter(clone_from=PdfReader(io.BytesIO(samples.pdf()))), io.BytesIO()
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(out)
    return out.getvalue()


def locked_zip() -> bytes:
    data = bytearray(samples.docx())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def damaged_member() -> bytes:
    data = bytearray(samples.docx())
    data[data.index(b"word/document.xml") + 40] ^= 0xFF
    return bytes(data)


def protected_book() -> bytes:
    reference = '<encryption><CipherReference URI="OEBPS/Text/0.xhtml"/></encryption>'
    return samples.epub(**{"META-INF/encryption.xml": reference})


def leading_out(path: str) -> bytes:
    item = f'<item id="a" href="{path}" media-type="application/xhtml+xml"/>'
    return samples.epub(**{"OEBPS/book.opf": f'<package><manifest>{item}</manifest><spine><itemref idref="a"/></spine></package>'})


CASES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "an encrypted PDF": ("a.pdf", encrypted_pdf, "a.pdf is an encrypted PDF: save it without a password"),
    "a scan": ("a.pdf", lambda: samples.pdf(["", ""]), "a.pdf is a PDF without a text layer"),
    "half a PDF": ("a.pdf", lambda: half(samples.pdf()), "a.pdf is "),
    "a PDF of nonsense": ("a.pdf", lambda: b"%PDF-1.4 nonsense", "a.pdf is damaged, not a readable PDF"),
    "half a parquet": ("a.parquet", lambda: half(samples.parquet()), "a.parquet is damaged or incomplete, not a readable parquet file"),
    "half a gzip": ("a.gz", lambda: half(gzip.compress(os.urandom(999))), "a.gz is incomplete: it ends in the middle"),
    "half a bzip2": ("a.bz2", lambda: half(bz2.compress(samples.PLAIN * 99)), "a.bz2 is incomplete: it ends in the middle"),
    "half an xz": ("a.xz", lambda: half(lzma.compress(samples.PLAIN * 99)), "a.xz is incomplete: it ends in the middle"),
    "half a zst": ("a.zst", lambda: half(samples.zst(os.urandom(999))), "a.zst is incomplete: it ends in the middle"),
    "a damaged gzip": ("a.gz", lambda: gzip.compress(samples.PLAIN * 9)[:-8] + b"12345678", "a.gz is damaged and cannot be decompressed"),
    "compressed twice": ("a.gz", lambda: gzip.compress(gzip.compress(b"x")), "a.gz is compressed twice: unpack it once"),
    "a tar": ("a.tar.gz", lambda: gzip.compress(bytes(257) + b"ustar" + bytes(250)), "a.tar.gz is a tar archive: give a file of text"),
    "half a book": ("a.epub", lambda: half(samples.epub()), "a.epub is not an EPUB, or a damaged one: get it again"),
    "a damaged document": ("a.docx", damaged_member, "a.docx is damaged or incomplete, not a readable zip archive: get it again"),
    "a locked document": ("a.docx", locked_zip, "a.docx is encrypted: save it without a password"),
    "a protected book": ("a.epub", protected_book, "a.epub is a copy-protected book"),
    "a book that leads out": ("a.epub", lambda: leading_out("../../etc/passwd"), "the path 'OEBPS/../../etc/passwd' in it leads outside"),
    "a book that begins at the root": ("a.epub", lambda: leading_out("/etc/passwd"), "the path '/etc/passwd' in it leads outside"),
    "a book without its page": ("a.epub", lambda: leading_out("gone.xhtml"), "it names 'OEBPS/gone.xhtml', which is not in it"),
    "a book without pages": ("a.epub", lambda: samples.epub(**{"OEBPS/book.opf": "<package/>"}), "it has no pages in its spine"),
    "a book whose list is no XML": ("a.epub", lambda: samples.epub(**{"OEBPS/book.opf": "<"}), "OEBPS/book.opf in it is not XML"),
    "a document that is no XML": ("a.docx", lambda: samples.zipped({"word/document.xml": "<a>"}), "word/document.xml in it is not XML"),
    "a spreadsheet": ("a.xlsx", lambda: samples.zipped({"xl/workbook.xml": "<a/>"}), "a.xlsx is a zip archive: give a file of text"),
    "an image": ("a.txt", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "a.txt is a PNG image: give a file of text"),
    "tokens": ("train.bin", lambda: bytes([7, 0] * 200), "train.bin is binary data, not text: give a file of text"),
    "text called a PDF": ("a.pdf", lambda: b"plain", "a.pdf is not a PDF, or a damaged one"),
    "text called gzip": ("a.txt.gz", lambda: b"plain", "a.txt.gz is not a .gz file, or a damaged one"),
    "a line that is not JSON": ("a.jsonl", lambda: ROW + b"\n{oops}\n", "a.jsonl line 3 is not valid JSON"),
    "a row without the field": ("a.jsonl", lambda: ROW + b'{"body": 1, "id": 2}\n', "line 2 has no field 'text': choose one of body, id"),
    "a row without fields": ("a.jsonl", lambda: b"{}\n", "a.jsonl line 1 has no field 'text': it has no field at all"),
    "a text that is a number": ("a.jsonl", lambda: b'{"text": 3}\n', "the field 'text' of a.jsonl line 1 is not a text or a list of texts"),
    "a chat among texts": ("a.jsonl", lambda: ROW + CHAT, "a.jsonl line 2 is a conversation and line 1 a text"),
    "a text among chats": ("a.jsonl", lambda: CHAT + ROW, "a.jsonl line 2 is a text and line 1 a conversation"),
    "JSON without a text": ("a.json", lambda: b'{"a": 1}', "a.json is JSON without a text: has no field 'text': choose one of a"),
    "an element without the field": ("a.json", lambda: b'["a", {"b": 1}]', "a.json element 2 has no field 'text': choose one of b"),
    "broken JSON": ("a.json", lambda: b'["a', "a.json is not valid JSON"),
    "a CSV without a header": ("a.csv", lambda: b"one,two\nthree,four\n", "which must name the columns: choose one of one, two"),
    "a short row": ("a.csv", lambda: b"id,text\n1,a\n2\n", "a.csv line 3 has 1 columns, not 2"),
    "an open quote": ("a.csv", lambda: b'id,text\n1,"a\n2,b\n', "a.csv is not valid CSV after line "),
    "a CSV of the old Macintosh": ("a.csv", lambda: b"id,text\r1,a\r2,b\r", "a.csv is not valid CSV after line 1: new-line character"),
    "a damaged zst": ("a.zst", lambda: samples.zst(os.urandom(999))[:-400] + bytes(400), "a.zst is "),
    "a parquet without the column": ("a.parquet", lambda: samples.parquet({"body": ["a"]}), "has no column 'text': choose one of body"),
    "a column of numbers": ("a.parquet", lambda: samples.parquet({"text": [1]}), "the field 'text' of a.parquet row 1 is not a text"),
    "an empty file": ("a.txt", lambda: b"", "a.txt is empty"),
    "an empty table": ("a.csv", lambda: b"", "a.csv is empty"),
    "a page without text": ("a.html", lambda: b"<html><script>x</script></html>", "a.html is empty"),
    "empty rows": ("a.jsonl", lambda: b'{"text": ""}\n{"text": null}\n', "a.jsonl is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_read_is_refused_in_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, make, complaint = CASES[case]
    Path(name).write_bytes(make())
    with pytest.raises(UsageError) as caught:
        prepared(DataConfig(source=name, tokenizer="byte"))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert os.listdir() == [name]


def test_a_damaged_file_in_a_folder_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mixed").mkdir()
    Path("mixed/a.txt").write_text("good")
    Path("mixed/b.parquet").write_bytes(half(samples.parquet()))
    with pytest.raises(UsageError, match=r"mixed/b\.parquet is damaged"):
        list(open_source("mixed").documents())


def test_a_folder_of_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(UsageError, match=r"the folder photos has no text files: .*1 × PNG image"):
        list(open_source("photos").documents())


# Bombs, and documents longer than memory


def read(name: str, **options: Any) -> list[str]:
    source = open_source(name, options=DataConfig(**options))
    return ["".join(piece.text for piece in document.pieces) for document in source.documents()]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, samples.zst], ids=["gz", "bz2", "xz", "zst"])
def test_a_bomb_is_refused_before_it_fills_a_disk(pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compressed, "SMALL", 100_000)
    for name in ("bomb", "bomb.jsonl.gz"):
        Path(name).write_bytes(pack(b"a" * 3_000_000))
        with pytest.raises(UsageError, match=f"{name} holds more than 200 times its size"):
            read(name)
    Path("large").write_bytes(pack(os.urandom(150_000).hex().encode()))
    assert len(read("large")[0]) == 300_000  # what a text may hold


def test_a_bomb_of_a_book_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contract, "DOCUMENT_LIMIT", 100_000)
    monkeypatch.setattr("minigpt_cli.data.sources.zipped.DOCUMENT_LIMIT", 100_000)
    Path("a.epub").write_bytes(samples.epub({f"{i}.xhtml": "a" * 40_000 for i in range(9)}))
    with pytest.raises(UsageError, match=r"a document in a\.epub is longer than "):
        read("a.epub")


def test_entities_that_grow_without_end_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    page = f'<!DOCTYPE html [<!ENTITY l0 "lol">{laughs}]><html><body><p>one &l9; two</p></body></html>'
    Path("a.epub").write_bytes(samples.epub(**{"OEBPS/Text/0.xhtml": page}))
    assert len(read("a.epub")[0]) < 1000
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = f'<!DOCTYPE x [<!ENTITY l0 "lol">{laughs}]><w:document xmlns:w="{space}"><w:p><w:r><w:t>one&l9;</w:t></w:r></w:p></w:document>'
    Path("a.docx").write_bytes(samples.zipped({"word/document.xml": body}))
    with pytest.raises(UsageError, match=r"a\.docx is damaged"):
        read("a.docx")


@pytest.mark.parametrize("name", ["a.html", "a.csv", "a.jsonl", "marks.txt", "lines.txt"])
def test_a_document_longer_than_memory_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contract, "DOCUMENT_LIMIT", 1000)
    monkeypatch.setattr(jsonl, "LINE_LIMIT", 1000)
    monkeypatch.setattr(decoding, "BLOCK", 100)
    long = b"word " * 1000
    content = {"a.csv": b'id,text\n1,"' + long + b'"\n', "a.jsonl": json.dumps({"text": long.decode()}).encode(), "marks.txt": b"a\n" * 600}
    Path(name).write_bytes(content.get(name, long))
    how = {"lines.txt": "lines", "marks.txt": "---"}.get(name, "auto")
    with pytest.raises(UsageError, match=r"is longer than|has more than 1,000"):
        read(name, documents=how)


def test_a_json_value_longer_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(json_array, "LIMIT", 100)
    Path("a.json").write_text(json.dumps(["word"] * 100))
    with pytest.raises(UsageError, match=r"a\.json has more than .* write it as \.jsonl"):
        read("a.json")


def test_a_file_of_plain_text_may_be_longer_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contract, "DOCUMENT_LIMIT", 1000)
    Path("a.txt").write_bytes(b"word " * 1000)
    assert read("a.txt") == ["word " * 1000]


def test_a_zip_that_names_a_member_twice_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.docx", "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
        archive.writestr("word/other.xml", "<a/>")
    assert read("a.docx") == []


def test_every_sample_cut_anywhere_gives_documents_or_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, make in SAMPLES.items():
        whole = make()
        for cut in range(0, len(whole), max(1, len(whole) // 12)):
            Path(name).write_bytes(whole[:cut])
            with suppress(UsageError):
                read(name)


@pytest.mark.parametrize("out", ["notes", "notes/", "../{here}/notes", "notes/a.txt", "."])
def test_a_source_is_never_the_output(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("a text " * 99)
    out = out.format(here=tmp_path.name)
    source = "notes/a.txt" if out == "notes/a.txt" else "notes"
    with pytest.raises(UsageError, match=r"would replace the source|holds other files|is a file"):
        prepared(DataConfig(source=source, tokenizer="byte"), out=Path(out))
    assert os.listdir("notes") == ["a.txt"]


def test_a_folder_that_looks_like_tokens_is_not_replaced_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    Path("notes/train.bin").write_text("a text " * 99)
    with pytest.raises(UsageError, match=r"--out notes would replace the source notes/train\.bin: name another folder"):
        prepared(DataConfig(source="notes/train.bin", tokenizer="byte"), out=Path("notes"))
    assert os.listdir("notes") == ["train.bin"]


def test_memory_does_not_grow_with_empty_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n" * 100_000 + "one\ntwo\n")
    source = open_source("a.txt", options=DataConfig(documents="lines"))
    tracemalloc.start()
    assert [document.name for document in source.documents()] == ["a.txt:100001", "a.txt:100002"]
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert source.notices == ["skipped in a.txt: 100,000 empty documents, the first is a.txt:1"]


def test_long_rows_of_parquet_are_read_a_few_at_once_and_one_that_is_too_long_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow

    monkeypatch.chdir(tmp_path)

    def most(rows: list[str]) -> int:
        """The most bytes that the library held."""
        Path("a.parquet").write_bytes(samples.parquet({"text": rows}, row_group_size=8, use_dictionary=False))
        usual = pyarrow.default_memory_pool()
        pyarrow.set_memory_pool(pool := pyarrow.proxy_memory_pool(usual))
        try:
            for document in open_source("a.parquet").documents():
                assert next(iter(document.pieces)).text in rows
        finally:
            pyarrow.set_memory_pool(usual)
        return pool.max_memory() or 0

    monkeypatch.setattr("minigpt_cli.data.sources.parquet._AT_ONCE", 1 << 20)
    rows = [chr(97 + i) * 400_000 for i in range(24)]
    assert most(rows) < sum(map(len, rows)) / 2
    with pytest.raises(UsageError, match=r"a document in a\.parquet is longer than 67,108,864 bytes"):
        most(["x" * (1 << 27)])
