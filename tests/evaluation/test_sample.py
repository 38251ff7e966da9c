"""The sample that `runs look` measures on: whole windows of the validation text, character by character."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minigpt_cli.config import DataConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.evaluation.comparison import KINDS
from minigpt_cli.evaluation.sample import OTHER, Sample, sample_of

TEXT = "Über den Wolken 語 \U0001f600 frei.\n" * 60


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(tmp_path / "data"))


def dataset(folder: Path, name: str, text: str, tokenizer: str = "char") -> Dataset:
    (folder / name).write_text(text, encoding="utf-8")
    return prepared(DataConfig(source=str(folder / name), tokenizer=tokenizer, vocab_size=280))


def validation_text(found: Dataset) -> str:
    return found.tokenizer.decode(np.asarray(found.split("val").tokens))


def check_sums(found: Sample) -> None:
    """Each character has a kind and its share of the nats."""
    nats = np.random.default_rng(0).random(len(found.is_text))
    assert found.per_character(nats).sum() == pytest.approx(nats[found.is_text].sum())
    assert len(found.per_character(nats)) == len(found.text.decode()) == found.score(nats).n_chars
    assert found.rows.shape == (len(found.is_text) // found.window, found.window + 1)
    assert (found.rows[1:, 0] == found.rows[:-1, -1]).all()
    assert set(found.token_kinds()[~found.is_text].tolist()) <= {OTHER}


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
@pytest.mark.parametrize("block_size", [1, 7, 16, 10_000])
@pytest.mark.parametrize("characters", [50, 10_000])
def test_the_sample_is_the_beginning_of_the_validation_text(tmp_path: Path, tokenizer: str, block_size: int, characters: int) -> None:
    data = dataset(tmp_path, "text.txt", TEXT, tokenizer)
    found, whole = sample_of(data, block_size, characters), validation_text(data)
    text = found.text.decode()
    assert whole.startswith(text)
    assert min(len(whole), characters) - 3 * found.window - 3 < len(text) <= characters
    assert found.stream[0] == data.train.tokens[-1]
    check_sums(found)


def test_of_documents_the_ends_are_no_text(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"Document {i} of many."}) + "\n" for i in range(200))
    data = dataset(tmp_path, "rows.jsonl", rows)
    found = sample_of(data, 16)
    assert validation_text(data).replace("<|endoftext|>", "").startswith(found.text.decode())
    assert found.parts is not None
    assert found.parts.kind == "documents"
    assert all(found.text.decode()[start:].startswith("Document") for start in found.parts.first.tolist())
    assert (~found.is_text).sum() > 5
    check_sums(found)


def test_of_conversations_the_answers_alone_are_text(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    data = dataset(tmp_path, "chats.jsonl", "".join(json.dumps({"messages": turns}) + "\n" for _ in range(200)))
    found = sample_of(data, 16)
    assert set(found.text.decode().split(".")) <= {"Because", ""}
    check_sums(found)


def test_tokens_have_the_kind_of_their_first_character(tmp_path: Path) -> None:
    found = sample_of(dataset(tmp_path, "text.txt", "The 20 dogs!\n" * 100), 16)
    kinds = [KINDS[kind] for kind in found.token_kinds()]
    by_character = dict(zip(found.text.decode(), kinds, strict=True))
    assert {by_character[c] for c in "2! \n"} == {"digit", "punctuation", "space", "newline"}
    assert by_character["h"] == "inside a word"
    assert by_character["T"] == "word-initial"
