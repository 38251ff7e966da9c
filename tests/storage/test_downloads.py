"""Files from the network: fetched once, and never used unless their hash is right. A loopback server stands for the network."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from minigpt_cli.data.sources import corpora
from minigpt_cli.data.sources.corpora import Download, named_corpus
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.storage import downloads
from minigpt_cli.storage.downloads import RemoteFile, download

CONTENT = b"To be, or not to be\n" * 5000
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
GIT = f"git:{hashlib.sha1(b'blob %d' % len(CONTENT) + bytes(1) + CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT at /text, and counts."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path == "/text" else 404)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def corpus(url: str, digest: str = SHA256, name: str = "text.txt") -> Download:
    return Download("shakespeare", (RemoteFile(url, name, digest),))


@pytest.mark.parametrize("digest", [SHA256, GIT])
def test_a_corpus_is_downloaded_once_with_progress(server: str, digest: str) -> None:
    source = corpus(f"{server}/text", digest)
    seen: list[tuple[int, int | None]] = []
    source.fetch(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert "".join(source.chunks()).encode() == CONTENT
    assert source.n_bytes == len(CONTENT)
    assert Handler.asked == ["/text"]


def test_files_of_a_corpus_follow_each_other(server: str) -> None:
    source = Download("two", (RemoteFile(f"{server}/text", "a", SHA256), RemoteFile(f"{server}/text", "b", GIT)))
    assert "".join(source.chunks()).encode() == CONTENT * 2


def test_a_file_with_another_hash_is_thrown_away(server: str, tmp_path: Path) -> None:
    with pytest.raises(MiniGPTError, match=r"is not the expected file.*minigpt train FILE, or on python-docs"):
        corpus(f"{server}/text", "sha256:" + "0" * 64).fetch(lambda done, total: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_cache_is_fetched_again(server: str, tmp_path: Path) -> None:
    source = corpus(f"{server}/text")
    source.fetch(lambda done, total: None)
    (tmp_path / "cache" / "text.txt").write_bytes(CONTENT[:-1])
    assert "".join(source.chunks()).encode() == CONTENT
    assert len(Handler.asked) == 2


def test_offline_names_the_address_the_place_in_the_cache_and_other_texts(server: str, tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9/text", f"{server}/missing"):
        with pytest.raises(MiniGPTError, match=r"^cannot download shakespeare .*minigpt train FILE, or on python-docs") as caught:
            corpus(url).fetch(lambda done, total: None)
        assert f"put {url} at {tmp_path / 'cache' / 'text.txt'}" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_named_corpora_are_pinned_by_hash(shared_data: Path) -> None:
    files = {}
    for name in ("tinyshakespeare", "wikitext-2"):
        source = named_corpus(name)
        assert isinstance(source, Download)
        assert all(file.digest.partition(":")[0] in ("sha256", "git") for file in source.files)
        files |= {file.name: file for file in source.files}
    for name in ("tinyshakespeare.txt", "wikitext-2-valid.txt"):
        assert files[name].is_content((shared_data / name).read_bytes())


def test_the_cache_is_the_users() -> None:
    assert downloads.cache_folder().name == "minigpt"
    assert corpora.EMBEDDED == "python-docs"


def test_nothing_to_download_is_nothing() -> None:
    assert download((), "nothing", lambda done, total: None, "") == []


def test_an_answer_without_end_is_given_up(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_SIZE_LIMIT", 100)
    with pytest.raises(MiniGPTError, match=r"cannot download shakespeare .*ValueError"):
        corpus(f"{server}/text").fetch(lambda done, total: None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
