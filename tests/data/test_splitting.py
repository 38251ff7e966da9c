"""Documents: what each split gets, that adding documents moves none, and where each of them ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli import registry
from minigpt_cli.config import DataConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.data.parts import learned_text, parts_of
from minigpt_cli.data.sources.contract import Document, Piece
from minigpt_cli.data.splitting import FEW, by_hash
from minigpt_cli.errors import TextTooShort, UsageError
from minigpt_cli.evaluation.characters import spelled
from minigpt_cli.runstore.records import Fetched
from minigpt_cli.storage.downloads import Report
from minigpt_cli.tokenization import segments
from minigpt_cli.tokenization.contract import END_OF_TEXT, end_of_text


@dataclass
class Documents:
    """A source of these documents."""

    texts: list[str]
    label: str = "texts"
    n_bytes: int | None = None
    marks: tuple[str, ...] = ()
    split_by: Literal["character", "conversation"] = "character"
    notices: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    fetched: list[Fetched] = field(default_factory=list)
    on_disk: None = None

    def fetch(self, report: Report) -> None:
        pass

    def documents(self) -> Iterator[Document]:
        return (Document(f"{i:04d}.txt", map(Piece, [text[:7], text[7:]])) for i, text in enumerate(self.texts))


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Dataset]:
    return lambda texts, **settings: prepared(DataConfig(**{"vocab_size": 270, **settings}), tmp_path, source=Documents(texts))


def texts(count: int) -> list[str]:
    return [f"text {i}: " + "lorem ipsum é 漢 " * (3 + i % 5) + "\n" for i in range(count)]


def in_split(dataset: Dataset, name: str) -> list[str]:
    return dataset.text(name).split(END_OF_TEXT)[:-1]


@pytest.mark.parametrize("tokenizer", [name for name in registry.TOKENIZERS if name != "gpt2"])
def test_many_documents_go_to_splits_as_a_whole_and_each_ends(tokenizer: str, data: Callable[..., Dataset]) -> None:
    documents = texts(60)
    dataset = data((documents), tokenizer=tokenizer, train_frac=0.7, test_frac=0.1)
    found = {name: in_split(dataset, name) for name in dataset.splits()}
    assert sorted(document for part in found.values() for document in part) == sorted(documents)
    assert all(found.values())
    assert dataset.n_documents == 60
    for name, split in dataset.splits().items():
        assert split.n_documents == len(found[name])
        assert split.n_chars == sum(map(len, found[name]))  # the ends are no characters
        assert split.n_bytes == sum(len(document.encode()) for document in found[name])
        alone = [i for document in found[name] for i in [*dataset.tokenizer.encode(document).tolist(), end_of_text(dataset.tokenizer)]]
        assert split.tokens.tolist() == alone
    assert dataset.n_chars == sum(map(len, documents))


def test_adding_documents_moves_none_that_is_there(data: Callable[..., Dataset]) -> None:
    before, after = data(texts(40)), data(texts(70))
    for name in ("train", "val"):
        assert set(in_split(before, name)) <= set(in_split(after, name))


def test_equal_documents_fall_together(data: Callable[..., Dataset]) -> None:
    dataset = data([f"poem {i % 12}\n" for i in range(48)])
    assert not set(in_split(dataset, "train")) & set(in_split(dataset, "val"))


def test_of_few_documents_each_is_cut_in_its_length(data: Callable[..., Dataset]) -> None:
    documents = [f"{i}" + "abcdefghi" * 10 for i in range(FEW - 1)]
    dataset = data(documents)
    assert in_split(dataset, "train") == [document[:81] for document in documents]
    assert in_split(dataset, "val") == [document[81:] for document in documents]


def test_one_document_is_one_text_without_an_end(data: Callable[..., Dataset]) -> None:
    text = "word " * 200
    dataset = data([text, ""])  # an empty one is none
    assert dataset.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert (dataset.text("train"), dataset.text("val")) == (text[:900], text[900:])
    assert end_of_text(dataset.tokenizer) is None
    assert dataset.n_documents == 1


def test_a_document_that_holds_the_end_itself_is_named(data: Callable[..., Dataset]) -> None:
    with pytest.raises(UsageError, match=r"0003.txt holds <\|endoftext\|>.*--documents"):
        data([*texts(3), f"a{END_OF_TEXT}b", *texts(12)])


def test_documents_that_are_all_the_same_are_refused_as_such(data: Callable[..., Dataset]) -> None:
    with pytest.raises(TextTooShort, match="texts has 40 documents, 39 of which repeat another, which leaves none"):
        data(["a row of text"] * 40)


def test_documents_too_short_for_a_split_are_refused(data: Callable[..., Dataset]) -> None:
    with pytest.raises(TextTooShort, match="train split"):
        data((["a", "b"]), train_frac=0.3)


def test_every_end_of_very_many_short_documents_is_one_token(data: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LIMIT", 32)
    dataset = data(["".join("abcdefgh"[int(digit)] for digit in f"{i:o}") for i in range(300)], tokenizer="bpe")
    end = end_of_text(dataset.tokenizer)
    assert {name: int((split.tokens == end).sum()) for name, split in dataset.splits().items()} == {
        name: split.n_documents for name, split in dataset.splits().items()
    }


def test_bpe_learns_nothing_across_the_end_of_a_document(data: Callable[..., Dataset]) -> None:
    dataset = data(([f"{'q' * (1 + i % 3)}{i}z" for i in range(90)]), tokenizer="bpe", vocab_size=300)
    assert not [piece for piece in dataset.tokenizer.token_bytes() if b"zq" in piece]


def test_parts_and_what_is_learned_are_the_documents(data: Callable[..., Dataset]) -> None:
    dataset = data(texts(30))
    found, documents = parts_of(dataset.train.tokens, dataset.tokenizer, documents=True), in_split(dataset, "train")
    assert found is not None
    assert found.scored.all()
    assert found.marks.sum() == len(found.starts) == len(documents)
    assert found.starts.tolist() == np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1].tolist()
    assert spelled(*learned_text(dataset, "train")) == "".join(d + "\n" for d in documents)
    assert parts_of(dataset.train.tokens, dataset.tokenizer) is None


@given(st.lists(st.integers(0, 2**64 - 1), min_size=FEW, max_size=200, unique=True), st.sampled_from([0.0, 0.1, 0.3]))
def test_every_split_has_a_document_and_shares_are_as_asked(hashes: list[int], test_frac: float) -> None:
    found = by_hash(hashes, 0.6, test_frac)
    assert set(found.tolist()) == ({0, 1, 2} if test_frac else {0, 1})
    many = by_hash(np.random.default_rng(0).integers(0, 2**63, 20_000, dtype=np.uint64) * np.uint64(2), 0.6, test_frac)
    assert (many == 0).mean() == pytest.approx(0.6, abs=0.02)
    assert (many == 2).mean() == pytest.approx(test_frac, abs=0.02)


def test_a_source_for_each_split_is_used_as_it_is(tmp_path: Path) -> None:
    for name, text in {"train": "abcd " * 99, "val": "dcba " * 9, "test": "bcad " * 7}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    files = {name: (str(tmp_path / f"{name}.txt"),) for name in ("val", "test")}
    dataset = prepared(DataConfig(source=str(tmp_path / "train.txt"), **files), tmp_path)
    assert {name: dataset.text(name) for name in dataset.splits()} == {"train": "abcd " * 99, "val": "dcba " * 9, "test": "bcad " * 7}
    assert end_of_text(dataset.tokenizer) is None  # one document each
    assert dataset.before("val") is None  # nothing is read before it
    (tmp_path / "val.txt").write_text("dcbb " * 9)
    assert prepared(DataConfig(source=str(tmp_path / "train.txt"), **files), tmp_path).key != dataset.key


def test_documents_of_given_splits_end_as_others_do(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"name{i}\n" for i in range(50)))
    (tmp_path / "val.txt").write_text("ame1\n")
    dataset = prepared(DataConfig(source=str(tmp_path / "train.txt"), val=(str(tmp_path / "val.txt"),), documents="lines"), tmp_path)
    assert in_split(dataset, "train") == [f"name{i}" for i in range(50)]
    assert in_split(dataset, "val") == ["ame1"]


@pytest.mark.parametrize("wrong", [{"test": ("x",)}, {"val": ("x",), "train_frac": 0.5}, {"val": ("x",), "test_frac": 0.1}])
def test_sources_of_splits_and_fractions_exclude_each_other(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"--(val|test)"):
        DataConfig(**wrong)  # type: ignore[arg-type]
