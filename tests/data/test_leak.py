"""How much of the validation text stands in the training text: as the exact search for copies finds it."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.tiny import chats
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.config import DataConfig
from minigpt_cli.data import leak
from minigpt_cli.data.dataset import RECORD, Dataset, open_dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.data.parts import LearnedText, learned_text
from minigpt_cli.evaluation.characters import spelled
from minigpt_cli.evaluation.memorisation import copied_lengths
from minigpt_cli.runstore.records import Corpus
from minigpt_cli.tokenization.char import code_points

short = st.text("abß", max_size=14)


def words(count: int, seed: int) -> str:
    """Text without repeats of its own."""
    draw = random.Random(seed)
    return "".join(draw.choice("abcdefghij klmnopqrstuvwxyz") for _ in range(count))


def verbatim(texts: list[str], training: Iterable[Iterable[str]], run: int = leak.RUN) -> Any:
    """What stands in the training texts, of texts that are given as strings."""
    return leak.verbatim(list(map(code_points, texts)), (map(code_points, pieces) for pieces in training), run)


def dataset_of(tmp_path: Path, text: str, name: str = "text.txt", **settings: Any) -> Dataset:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return prepared(DataConfig(source=str(tmp_path / name), **settings), tmp_path / "data")


@given(st.lists(short, max_size=3), st.lists(st.lists(short, max_size=3), max_size=3), st.integers(1, 5))
def test_it_is_what_an_exact_search_finds(texts: list[str], training: list[list[str]], run: int) -> None:
    """A character counts if a copy of `run` characters and more, which ends at it or after it, covers it."""
    expected = []
    for text in texts:
        copied = np.zeros(len(text), np.bool_)
        for whole in map("".join, training):
            for end, length in enumerate(copied_lengths([text], [whole]), 1):
                if length >= run:
                    copied[end - length : end] = True
        expected += copied.tolist()
    assert verbatim(texts, training, run).tolist() == expected


def test_pieces_of_the_training_text_are_read_as_one() -> None:
    text = words(3000, seed=1)
    cuts = sorted(random.Random(2).sample(range(3000), 200))
    pieces = [text[a:b] for a, b in pairwise([0, *cuts, 3000])]
    looked_for = words(70, seed=3) + text[1000:1060] + words(70, seed=4) + text[2000:2049]
    assert verbatim([looked_for], [pieces]).sum() == 60
    assert verbatim([looked_for[:130], looked_for[130:]], [pieces]).tolist()[70:130] == [True] * 60


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_it_is_measured_when_tokens_are_made_and_kept(tokenizer: str, tmp_path: Path) -> None:
    body = "ß" + words(9000, seed=5)
    dataset = dataset_of(tmp_path, body + body[100:600] + words(499, seed=6), tokenizer=tokenizer, vocab_size=300)
    assert dataset.leak is not None
    assert dataset.leak.n_chars == dataset.val.n_chars == 1000
    assert dataset.leak.share == pytest.approx(0.5, abs=0.01)  # a letter beside it may happen to fit too
    assert open_dataset(dataset.dir).leak == dataset.leak
    assert leak.warnings(dataset.leak)[0].startswith("Warning: 50.")


def test_an_old_record_without_it_opens(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, words(3000, seed=7))
    record = json.loads((dataset.dir / RECORD).read_text())
    del record["leak"]
    (dataset.dir / RECORD).write_text(json.dumps(record))
    assert open_dataset(dataset.dir).leak is None
    assert leak.warnings(None) == []
    assert Corpus.model_validate({"label": "x", "sha256": "y"}).leak is None


def test_a_little_is_not_warned_of(tmp_path: Path) -> None:
    body = words(90_000, seed=8)
    dataset = dataset_of(tmp_path, body + body[100:160] + words(9_940, seed=9))
    assert dataset.leak is not None
    assert 0.006 <= dataset.leak.share < leak.MATTERS
    assert leak.warnings(dataset.leak) == []


def test_of_conversations_the_answers_are_compared(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        answer = words(60, seed=number if number < 36 else number - 30)  # the last four are answers from before
        messages = [{"role": "system", "content": "the same long words " * 5}, {"role": "user", "content": "?"}]
        rows.append(json.dumps({"messages": [*messages, {"role": "assistant", "content": answer}]}))
    dataset = dataset_of(tmp_path, "\n".join(rows), "chats.jsonl")
    assert dataset.leak is not None
    assert dataset.leak.share == pytest.approx(1, abs=0.03)
    other = dataset_of(tmp_path, chats(), "sums.jsonl")
    assert other.leak is not None
    assert other.leak.share == 0


@pytest.mark.parametrize("together", [1, 7, 1 << 18])
def test_what_is_learned_is_the_same_in_blocks(together: int, tmp_path: Path) -> None:
    conversations = dataset_of(tmp_path, chats(), "chats.jsonl")
    names = dataset_of(tmp_path, "anna\nbob\nclaire\n" * 9, documents="lines")
    for dataset, kind in ((conversations, "answers"), (names, "documents")):
        pieces = LearnedText(dataset.tokenizer, kind).pieces(dataset.train.blocks(together))  # type: ignore[arg-type]
        assert "".join(pieces) == spelled(*learned_text(dataset, "train"))


def test_large_texts_are_sampled_and_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leak, "SAMPLE", 4096)
    body = words(30_000, seed=10)
    dataset = dataset_of(tmp_path, body + body, train_frac=0.5)
    assert dataset.leak is not None
    assert (dataset.leak.share, dataset.leak.n_chars) == (1.0, 4096)
    assert "from a sample" in dataset.leak.in_words
    monkeypatch.setattr(leak, "SAMPLE", 30_000)
    monkeypatch.setattr(leak, "TRAINING", 4096)
    monkeypatch.setattr(leak, "READ", 1024)
    found = leak.leak_of(dataset.dir / "train.bin", dataset.dir / "val.bin", "uint16", dataset.tokenizer, None)
    assert 0 < found.share < 0.2
    assert found.of_train == pytest.approx(4096 / 30_000)
    assert found.in_words.startswith("at least ")
    assert found.in_words.endswith("14% of it was read")


def test_memory_does_not_grow_with_the_training_text() -> None:
    piece = words(1 << 16, seed=11)

    def peak(count: int) -> int:
        tracemalloc.start()
        verbatim([words(2000, seed=12)], [(piece for _ in range(count))])
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)  # makes the powers
    assert peak(200) < 200 * len(piece)  # a byte of it would be kept for each character, or less
