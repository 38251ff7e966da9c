"""Texts at a web address and datasets of the hub, from a server on this machine with the hub's layout."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import huggingface_hub.constants as hub
import pytest
from harness import samples
from harness.hub import COMMIT, Answers, served, use_hub

from minigpt_cli.config import DataConfig
from minigpt_cli.data.dataset import open_dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.data.sources.contract import Source
from minigpt_cli.data.sources.open_source import open_source
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.runstore.records import FETCHED, FETCHED_FILES, Corpus, Fetched
from minigpt_cli.storage import downloads

PAGE = b"<!DOCTYPE html><html><body><p>Seen</p></body></html>"


def table(*texts: str) -> bytes:
    return samples.parquet({"text": list(texts)})


PLACES: dict[str, bytes] = {
    "/notes.txt": b"some notes\n",
    "/notes.txt.gz": gzip.compress(b"packed notes\n"),
    "/notes": PAGE,
    "/page.html": PAGE,
    "/rows.jsonl?raw=1": samples.jsonl(),
}
BRANCH = "refs/convert/parquet"
DATASETS: dict[tuple[str, str], dict[str, bytes]] = {
    ("me/converted", BRANCH): {
        "default/train/0000.parquet": table("one", "two"),
        "default/train/0001.parquet": table("three"),
        "default/test/0000.parquet": table("four"),
        "small/partial-train/0000.parquet": table("five"),
    },
    ("me/plain", "main"): {
        "README.md": b"",
        "data/train-00000-of-00002.parquet": table("a"),
        "data/train-00001-of-00002.parquet": table("b"),
        "data/validation-00000-of-00001.parquet": table("c"),
    },
    ("me/many", "main"): {"x/train.parquet": table("x"), "y/train.parquet": table("y"), "y/test.parquet": table("z")},
    ("me/none", "main"): {"data.csv": b"text\na\n"},
}


class Handler(Answers):
    """Serves PLACES and DATASETS, and counts."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = unquote(self.path)
        if path in PLACES:
            return self.answer(PLACES[path])
        if path.startswith("/api/datasets/"):
            repo, _, revision = path.removeprefix("/api/datasets/").partition("/revision/")
            files = DATASETS.get((repo, revision or "main"))
            if files is not None:
                return self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}).encode())
            known = any(name == repo for name, _ in DATASETS)
            return self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        for (repo, _), files in DATASETS.items():
            start = f"/datasets/{repo}/resolve/{COMMIT}/"
            if path.startswith(start) and path.removeprefix(start) in files:
                data = files[path.removeprefix(start)]
                etag = hashlib.sha256(data).hexdigest()
                return self.answer(data, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        return self.answer(b"not here", 404)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    Handler.asked.clear()
    with served(Handler) as address:
        use_hub(monkeypatch, address, tmp_path / "hub")
        yield address


def texts(source: Source) -> list[str]:
    return ["".join(piece.text for piece in document.pieces) for document in source.documents()]


# Addresses


def test_an_address_is_downloaded_once(server: str) -> None:
    for _ in range(2):
        source = open_source(f"{server}/notes.txt")
        source.fetch(lambda done, total: None)
        assert texts(source) == ["some notes\n"]
    assert Handler.asked == ["/notes.txt"]


def test_what_is_at_an_address_is_known_by_its_name_and_content(server: str) -> None:
    assert texts(open_source(f"{server}/notes.txt.gz")) == ["packed notes\n"]
    assert texts(open_source(f"{server}/page.html")) == ["Seen"]
    assert texts(open_source(f"{server}/rows.jsonl?raw=1")) == list(samples.TEXTS)


def test_a_download_that_was_changed_is_downloaded_again(server: str, tmp_path: Path) -> None:
    assert texts(open_source(f"{server}/notes.txt")) == ["some notes\n"]
    (kept,) = (tmp_path / "cache").rglob("notes.txt")
    kept.write_bytes(b"damage")
    assert texts(open_source(f"{server}/notes.txt")) == ["some notes\n"]


def test_a_page_where_a_text_was_meant_is_refused(server: str) -> None:
    with pytest.raises(UsageError, match=r"/notes is a web page: give the address of the text itself") as caught:
        prepared(DataConfig(source=f"{server}/notes"), Path("data"))
    assert "\n" not in str(caught.value)
    assert not Path("data").exists()


@pytest.mark.parametrize(("address", "why"), [("/gone.txt", "the answer is 404 Not Found"), ("", "ConnectionError")])
def test_an_address_without_an_answer_is_one_line(server: str, address: str, why: str) -> None:
    with pytest.raises(MiniGPTError, match=rf"cannot download .* \({why}\): check the address and the connection"):
        texts(open_source(server + address if address else "http://127.0.0.1:9/x.txt"))
    assert not list(Path("cache").rglob("*.txt"))


@pytest.mark.parametrize("address", ["http://", "http:///x.txt", "http://[::1/x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        texts(open_source(address))


# Datasets


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf:me/converted", ["one", "two", "three"]),
        ("hf:me/converted:test", ["four"]),
        ("hf:me/converted/small", ["five"]),
        ("hf:me/plain", ["a", "b"]),
        ("hf:me/plain:validation", ["c"]),
        ("hf:me/many/y:test", ["z"]),
    ],
)
def test_a_dataset_gives_the_rows_of_a_split(server: str, address: str, expected: list[str]) -> None:
    assert texts(open_source(address)) == expected


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("hf:me/nothing", "the hub has no public dataset me/nothing"),
        ("hf:me/converted:validation", "has no split 'validation': name one of test, train, as in hf:OWNER/DATASET:test"),
        ("hf:me/converted/large", "name one of its configurations, as in hf:OWNER/DATASET/default: default, small"),
        ("hf:me/many", "name one of its configurations, as in hf:OWNER/DATASET/x: x, y"),
        ("hf:me/none", "hf:me/none has no parquet files"),
        ("hf:nobody", "hf:nobody is not a dataset: write hf:OWNER/DATASET"),
        ("hf:../..", "the hub has no public dataset"),
    ],
)
def test_a_dataset_that_does_not_exist_is_refused_in_one_line(server: str, address: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        texts(open_source(address))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_connection_a_dataset_is_one_line(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MiniGPTError, match=r"cannot download hf:me/plain \(\w+\): check the connection to huggingface\.co") as caught:
        texts(open_source("hf:me/plain"))
    assert "\n" not in str(caught.value)


def test_what_came_from_the_network_is_recorded_with_the_tokens(server: str, tmp_path: Path) -> None:
    sources = (f"{server}/notes.txt", "hf:me/converted", str(tmp_path / "own.txt"))
    (tmp_path / "own.txt").write_text("of this machine")
    dataset = prepared(DataConfig(source=sources, train_frac=0.5), tmp_path / "data")
    file, rows = dataset.origins.fetched
    assert (file.address, file.sha256) == (f"{server}/notes.txt", hashlib.sha256(PLACES["/notes.txt"]).hexdigest())
    assert (rows.address, rows.commit, rows.n_files) == ("hf:me/converted", COMMIT, 2)
    assert rows.files == ["default/train/0000.parquet", "default/train/0001.parquet"]
    record = json.loads((dataset.dir / "dataset.json").read_text())
    assert [one["address"] for one in record["origins"]["fetched"]] == [file.address, rows.address]
    assert open_dataset(dataset.dir).origins.fetched == [file, rows]


def test_the_names_of_many_files_are_bounded() -> None:
    many = Fetched(address="hf:me/large", commit=COMMIT, files=["a"] * FETCHED_FILES, n_files=4000)
    corpus = Corpus(label="x", sha256="0" * 64, fetched=[many] * FETCHED)
    assert Corpus.model_validate_json(corpus.model_dump_json()) == corpus
    with pytest.raises(ValueError, match="at most 20"):
        Fetched(address="hf:me/large", files=["a"] * 21)
