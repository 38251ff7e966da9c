"""Cleaning in pieces equals cleaning of the whole, wherever the pieces begin and end."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minigpt_cli.config import DataConfig
from minigpt_cli.data import cleaning, splitting
from minigpt_cli.data.cleaning import Change, Cleaning, cleaned_prompt, composed, lowercased
from minigpt_cli.data.encoding import prepared
from minigpt_cli.errors import UsageError

# Letters with accents before and behind, Hangul vowels and finals, vowel signs, a mark of two marks, sigmas and what words ignore.
AWKWARD = (
    "aΣσς.'’:\u00ad\u0301\u0323\u0308\u0344\u0f73\u0f71\u0f72\u1112\u1161\u11ab\u09c7\u09be\u0b47\u0b56İIJ\u030c\u01f0Kéẹ\u0958 \n한漢"
)


def joined(step: Callable[[Iterable[str]], Iterator[Change]], pieces: Iterable[str]) -> str:
    return "".join(change.after for change in step(pieces))


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    awkward = st.sampled_from(AWKWARD)
    text = draw(st.text(st.one_of(awkward, awkward, st.characters(exclude_categories=["Cs"])), max_size=30))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(cut_texts())
@example(["ΟΔΟΣ", "", "'", "'", "Σ", ".", "a"])
@settings(max_examples=400)
def test_lowercase_in_pieces_is_that_of_the_whole(pieces: list[str]) -> None:
    assert joined(lowercased, pieces) == "".join(pieces).lower()


@given(cut_texts())
@example(["e", "\u0323", "\u0301", "\u1112", "\u1161", "", "\u11ab"])
@settings(max_examples=400)
def test_nfc_in_pieces_is_that_of_the_whole(pieces: list[str]) -> None:
    assert joined(composed, pieces) == unicodedata.normalize("NFC", "".join(pieces))


def test_no_character_that_joins_the_one_before_it_is_taken_for_a_beginning() -> None:
    for point in [*range(0x80, 0xD800), *range(0xF900, 0x11A00)]:
        if len(parts := unicodedata.normalize("NFD", chr(point))) > 1:
            assert joined(composed, parts) == unicodedata.normalize("NFC", parts)


@given(cut_texts())
@settings(max_examples=100)
def test_all_together_lowercase_comes_first(pieces: list[str]) -> None:
    config = DataConfig(lowercase=True, normalize="nfc", ascii_only=True)
    whole = unicodedata.normalize("NFC", "".join(pieces).lower()).encode("ascii", "ignore").decode()
    assert Cleaning(config).text("".join(pieces)) == whole
    assert "".join(Cleaning(config)._cleaned(pieces)) == whole


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "_WAITING", 100)
    with pytest.raises(UsageError, match=r"more than 100 accents or points in a row after 'Σ'"):
        joined(lowercased, ["Σ", *["." * 30] * 9])
    with pytest.raises(UsageError, match="in a row after 'e'"):
        joined(composed, ["e", *["\u0301" * 30] * 9])
    assert max(len(change.before) for change in composed(["漢字" * 40] * 9)) <= 200


# ---- datasets

TEXT = "Σίσυφος CAFE\u0301 Été " * 60


def dataset(folder: Path, text: str = TEXT, name: str = "t.txt", **settings: Any) -> Any:
    (folder / name).write_text(text, encoding="utf-8")
    shares = {} if "val" in settings else {"train_frac": 0.5}
    return prepared(DataConfig(source=str(folder / name), **shares, **settings), folder / "data")


def test_a_cleaned_dataset_holds_the_cleaned_text_and_says_what_changed(tmp_path: Path) -> None:
    found = dataset(tmp_path, lowercase=True, normalize="nfc")
    assert found.text("train") + found.text("val") == unicodedata.normalize("NFC", TEXT.lower())
    assert f"--lowercase: {6 * 60} characters made lowercase" in found.notices
    assert f"--normalize nfc: {60} characters composed or replaced, the text is 60 shorter" in found.notices
    assert not any("--" in notice for notice in dataset(tmp_path).notices)
    assert "--ascii-only: 600 characters outside ASCII left out" in dataset(tmp_path, ascii_only=True).notices


def test_each_way_of_cleaning_has_token_files_of_its_own(tmp_path: Path) -> None:
    plain = "abc, " * 200  # which no cleaning changes
    ways: list[dict[str, Any]] = [{}, {"lowercase": True}, {"normalize": "nfc"}, {"max_chars": 50}, {"max_chars": 60}]
    keys = {dataset(tmp_path, plain, **way).key for way in ways}
    assert len(keys) == len(ways)
    for way in ways:
        record = json.loads((dataset(tmp_path, plain, **way).dir / "dataset.json").read_text())
        assert way.items() <= record.items()


def test_the_key_of_a_dataset_without_cleaning_is_that_of_minigpt_before_it(tmp_path: Path) -> None:
    assert dataset(tmp_path, "abc, " * 200).key == "1776c56ebd99d73ba39049207c32acc26a77f3f3b784f3af4b83b263c76467ea"


@pytest.mark.parametrize("flag", [{"lowercase": True}, {"normalize": "nfc"}, {"max_chars": 5}, {"ascii_only": True}])
def test_prepared_tokens_are_not_cleaned_again(tmp_path: Path, flag: dict[str, Any]) -> None:
    folder = str(dataset(tmp_path).dir)
    with pytest.raises(UsageError, match=r"holds token files made with .*: leave out --"):
        prepared(DataConfig(source=folder, **flag))


@pytest.mark.parametrize("n", [1, 37, 500, 5000])
def test_max_chars_shortens_the_training_text_alone(tmp_path: Path, n: int) -> None:
    text = "".join(chr(97 + i * i % 23) for i in range(2000))
    whole, part = dataset(tmp_path, text), dataset(tmp_path, text, max_chars=n)
    assert part.text("train") == whole.text("train")[:n]
    assert part.val.sha256 == whole.val.sha256
    assert part.n_chars == part.train.n_chars + part.val.n_chars
    assert (part.before("val") is None) == (n < 1000)  # else the beginning of the validation text would follow another text
    assert any(f"first {min(n, 1000):,} characters" in notice for notice in part.notices)


@pytest.mark.parametrize("n_documents", [3, 40])
def test_max_chars_of_documents_are_the_first_ones_each_with_its_end(tmp_path: Path, n_documents: int) -> None:
    text = "".join(f"line {i} of many lines\n" for i in range(n_documents))
    whole = dataset(tmp_path, text, documents="lines")
    part = dataset(tmp_path, text, documents="lines", max_chars=30)
    end = "<|endoftext|>"
    assert part.train.n_chars == 30
    assert part.text("train").endswith(end)
    kept = part.text("train").removesuffix(end)
    assert whole.text("train").startswith(kept)
    assert len(kept.replace(end, "")) == 30
    assert part.val.sha256 == whole.val.sha256
    assert part.n_documents == (3 if n_documents == 3 else part.train.n_documents + whole.val.n_documents)  # those that are used
    assert any("first 30 characters, of " in notice for notice in part.notices)


@pytest.mark.parametrize("n", [64, 100, 399, 499, 5000])
def test_many_characters_are_taken_from_all_over_the_training_text(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "STRETCH", 32)
    text = "".join(chr(0x4E00 + i) for i in range(1000))  # each once
    whole, part = dataset(tmp_path, text), dataset(tmp_path, text, max_chars=n)
    assert part.val.sha256 == whole.val.sha256
    taken = np.array([ord(c) - 0x4E00 for c in part.text("train")])
    assert len(taken) == min(n, 500)
    assert (np.diff(taken) >= 1).all()
    if n < 499:
        gaps = np.flatnonzero(np.diff(taken) > 1)
        assert len(gaps) == n // 32 - 1
        assert taken[-1] > 500 - 500 / (n // 32)  # in the last of as many parts of the text


@pytest.mark.parametrize(("n_documents", "own_val"), [(3, False), (400, False), (400, True)])
def test_stretches_of_documents_keep_the_ends_of_what_is_taken(
    n_documents: int, own_val: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "STRETCH", 50)
    (tmp_path / "held.txt").write_text("a line of its own\nand another line\n")
    given: dict[str, Any] = {"val": str(tmp_path / "held.txt")} if own_val else {}
    text = "".join(f"line {i} of {'very ' * (40 if n_documents == 3 else 1)}many lines\n" for i in range(n_documents))
    whole = dataset(tmp_path, text, documents="lines", **given)
    part = dataset(tmp_path, text, documents="lines", max_chars=150, **given)
    end = "<|endoftext|>"
    documents = part.text("train").split(end)
    assert documents.pop() == ""
    assert all(documents)
    assert sum(map(len, documents)) == part.train.n_chars == 150
    assert part.train.n_documents == len(documents)
    pieces = whole.text("train").split(end)
    assert all(any(document in piece for piece in pieces) for document in documents)
    assert part.val.sha256 == whole.val.sha256


def test_max_chars_of_conversations_are_whole_conversations(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(30))
    whole = dataset(tmp_path, rows, "c.jsonl")
    one = len("<|user|>q0<|end|><|assistant|>a0<|end|>")
    part = dataset(tmp_path, rows, "c.jsonl", max_chars=2 * one + 5)
    assert part.text("train") == whole.text("train")[: 2 * one]
    assert part.val.sha256 == whole.val.sha256


def test_messages_are_cleaned_one_by_one_and_marks_stay(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"prompt": "ΟΔΟΣ", "completion": f"É{i}"}) + "\n" for i in range(30))
    found = dataset(tmp_path, rows, "c.jsonl", lowercase=True)
    assert found.text("train").startswith("<|user|>οδος<|end|><|assistant|>é0<|end|>")


@pytest.mark.parametrize(("content", "flag"), [("say <|END|> now", "lowercase"), ("<|usér|>".replace("é", "eé"), "ascii_only")])
def test_a_message_that_becomes_a_mark_is_refused(tmp_path: Path, content: str, flag: str) -> None:
    rows = "".join(json.dumps({"prompt": content, "completion": "b"}) + "\n" for _ in range(30))
    with pytest.raises(UsageError, match=r"c.jsonl.* a cleaned message holds <\|.*reserved for the template"):
        dataset(tmp_path, rows, "c.jsonl", **{flag: True})


def test_a_prompt_is_cleaned_as_the_text_was_but_loses_nothing() -> None:
    config = DataConfig(lowercase=True, normalize="nfc", ascii_only=True)
    assert cleaned_prompt(config, "CAFE\u0301") == "café"
    assert cleaned_prompt(DataConfig(), "CAFE\u0301") == "CAFE\u0301"
