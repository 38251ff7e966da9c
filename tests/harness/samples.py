"""A small file of every kind that is read, for tests and the fuzzer: TEXTS as rows, pages or paragraphs."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Callable, Iterable

TEXTS = ("One day, a very long time ago,", "zwei Käfer 漢字 🙂 met.", 'They said "hello", & went on.')


def jsonl(rows: Iterable[object] = ()) -> bytes:
    """Rows, a line each; by default objects with a text."""
    rows = rows or [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def delimited(delimiter: str = ",") -> bytes:
    """A table with a header."""
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["id", "text"], *enumerate(TEXTS)])
    return out.getvalue().encode()


def parquet(columns: dict[str, list[object]] | None = None, **options: object) -> bytes:
    """A parquet file of these columns."""
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.table(columns or {"id": [1, 2, 3], "text": list(TEXTS)}), out, **options)
    return out.getvalue()


def html() -> bytes:
    """A page with what is seen, and what is not."""
    paragraphs = "".join(f"<p>{text.replace('&', '&amp;')}</p>\n" for text in TEXTS)
    return f"<!doctype html><html><head><title>No</title><script>no()</script></head><body>{paragraphs}<!-- no --></body></html>".encode()


def zipped(members: dict[str, bytes | str]) -> bytes:
    """A zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def epub(pages: dict[str, str] | None = None, **members: bytes | str) -> bytes:
    """A book; the spine has the pages in reverse order of the manifest. Other `members` replace or add to those of the archive."""
    pages = pages or {f"Text/{i}.xhtml": text.replace("&", "&amp;") for i, text in enumerate(TEXTS)}
    items = "".join(f'<item id="i{i}" href="{name}" media-type="application/xhtml+xml"/>' for i, name in reversed(list(enumerate(pages))))
    spine = "".join(f'<itemref idref="i{i}"/>' for i in range(len(pages)))
    xhtml = '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body><p>{}</p></body></html>'
    content = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf": f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{spine}</spine></package>',
        **{f"OEBPS/{name}": xhtml.format(text) for name, text in pages.items()},
    }
    return zipped(content | members)


def docx() -> bytes:
    """A Word document."""
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    paragraphs = "".join(f"<w:p><w:r><w:t>{text.replace('&', '&amp;')}</w:t></w:r></w:p>" for text in TEXTS)
    return zipped({"word/document.xml": f'<w:document xmlns:w="{space}"><w:body>{paragraphs}</w:body></w:document>'})


def pdf(pages: Iterable[str] = ("One day", "They said"), extra: bytes = b"") -> bytes:
    """A PDF with a line of ASCII on each page; `extra` goes into its trailer."""
    pages = list(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() if text else b"q Q"
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] {resources} /Contents {5 + 2 * i} 0 R >>".encode())
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    out, places = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    out += b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (size, extra, start)
    return bytes(out)


def zst(data: bytes) -> bytes:
    """Data compressed as .zst."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.compress(data)


PLAIN = "\n".join(TEXTS).encode()
SAMPLES: dict[str, Callable[[], bytes]] = {
    "plain.txt": lambda: PLAIN,
    "utf16.txt": lambda: PLAIN.decode().encode("utf-16"),
    "rows.jsonl": jsonl,
    "chats.jsonl": lambda: jsonl([{"prompt": text, "completion": text} for text in TEXTS]),
    "array.json": lambda: json.dumps([{"title": "t", "lines": [text]} for text in TEXTS]).encode(),
    "table.csv": delimited,
    "table.tsv": lambda: delimited("\t"),
    "rows.parquet": parquet,
    "page.html": html,
    "book.epub": epub,
    "letter.docx": docx,
    "paper.pdf": pdf,
    "plain.txt.gz": lambda: gzip.compress(PLAIN),
    "plain.txt.bz2": lambda: bz2.compress(PLAIN),
    "rows.jsonl.xz": lambda: lzma.compress(jsonl()),
    "page.html.zst": lambda: zst(html()),
    "rows.parquet.gz": lambda: gzip.compress(parquet()),
}
"""File name → how its content is made."""
