"""Token files on disk: opened whole or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt_cli.config import DataConfig
from minigpt_cli.data.dataset import RECORD, Dataset, cached, check_long_enough, dtype_for, open_dataset, read_record
from minigpt_cli.data.encoding import prepared
from minigpt_cli.errors import RunDamaged, TextTooShort, UsageError

TEXT = "the cat sat on the mat\n" * 20


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "text.txt").write_text(TEXT)
    return prepared(DataConfig(source=str(tmp_path / "text.txt"), tokenizer="bpe", vocab_size=260), tmp_path / "data")


def test_it_opens_as_it_was_made(dataset: Dataset) -> None:
    again = open_dataset(dataset.dir)
    assert again.text("train") + again.text("val") == TEXT
    assert isinstance(again.train.tokens, np.memmap)
    assert not again.train.tokens.flags.writeable
    assert again.tokenizer.name == "bpe"
    assert (again.sha256, again.val.sha256) == (dataset.sha256, dataset.val.sha256)


def test_a_split_that_is_not_there_is_named(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="no 'test' split: make one with --test-frac"):
        dataset.split("test")
    for name in ("valid", "dir", ""):
        with pytest.raises(UsageError, match="use train, val or test"):
            dataset.text(name)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_tokens_take_two_bytes_where_they_fit(vocab_size: int, dtype: str) -> None:
    assert dtype_for(vocab_size) == dtype
    assert np.array([vocab_size - 1]).astype(dtype).tolist() == [vocab_size - 1]


def test_too_short_splits_are_named_with_the_fix(dataset: Dataset) -> None:
    train, val = len(dataset.train.tokens), len(dataset.val.tokens)
    check_long_enough(dataset, val - 1)
    with pytest.raises(TextTooShort, match=rf"^{val} validation tokens cannot fill block_size {val} \+ 1: .*--block-size or --train-frac$"):
        check_long_enough(dataset, val)
    with pytest.raises(TextTooShort, match=rf"^{train} training tokens cannot fill block_size {train} \+ 1: .*a smaller --block-size$"):
        check_long_enough(dataset, train)


def change_record(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema_version": 2}, "is not a dataset record: schema_version"),
        ({"n_chars": -1}, "is not a dataset record: n_chars"),
        ({"splits": {}}, "names no train or no val split"),
        ({"vocab_size": 7}, "disagree about the vocabulary"),
        ({"dtype": "uint32"}, "disagree about the vocabulary"),
        ({"tokenizer_sha256": "0"}, "tokenizer.json is damaged"),
    ],
)
def test_a_wrong_record_is_refused(changes: dict[str, Any], complaint: str, dataset: Dataset) -> None:
    change_record(dataset.dir, **changes)
    with pytest.raises(RunDamaged, match=complaint):
        open_dataset(dataset.dir)


def test_a_split_of_another_length_is_refused(dataset: Dataset) -> None:
    splits = json.loads((dataset.dir / RECORD).read_text())["splits"]
    splits["val"]["n_tokens"] += 1
    change_record(dataset.dir, splits=splits)
    with pytest.raises(RunDamaged, match=r"val\.bin has \d+ tokens, not \d+: delete its folder"):
        open_dataset(dataset.dir)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", RECORD])
def test_missing_and_swapped_files_are_refused(name: str, dataset: Dataset, tmp_path: Path) -> None:
    path = dataset.dir / name
    path.rename(tmp_path / "aside")
    with pytest.raises(RunDamaged):
        open_dataset(dataset.dir)
    path.symlink_to(tmp_path / "aside")
    with pytest.raises(RunDamaged, match="symbolic link"):
        open_dataset(dataset.dir)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunDamaged, match="not a regular file"):
        open_dataset(dataset.dir)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(RunDamaged, match="not a regular file"):
        open_dataset(dataset.dir)


def test_a_hostile_tokenizer_with_a_matching_hash_is_refused(dataset: Dataset) -> None:
    import hashlib

    (dataset.dir / "tokenizer.json").write_text("{}")
    change_record(dataset.dir, tokenizer_sha256=hashlib.sha256(b"{}").hexdigest())
    with pytest.raises(RunDamaged, match=r"tokenizer\.json: .*has no model"):
        open_dataset(dataset.dir)


def test_only_the_same_key_is_taken_from_the_cache(dataset: Dataset) -> None:
    key = read_record(dataset.dir).key
    assert cached(dataset.dir, key) is not None
    assert cached(dataset.dir, key[::-1]) is None
    assert cached(dataset.dir.parent, key) is None


@given(st.sampled_from(["train.bin", "val.bin", "tokenizer.json", RECORD]), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=3))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_found(dataset: Dataset, name: str, place: int, junk: bytes) -> None:
    path = dataset.dir / name
    good = path.read_bytes()
    at = place % len(good)
    bad = good[:at] + junk + good[at + len(junk) :]
    try:
        path.write_bytes(bad)
        if bad == good or name == RECORD:  # the record is JSON: a change may be harmless (a label), never a traceback
            try:
                opened = open_dataset(dataset.dir)
            except RunDamaged as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert opened.train.tokens.tolist() == dataset.train.tokens.tolist()
        else:
            with pytest.raises(RunDamaged):
                open_dataset(dataset.dir)
    finally:
        path.write_bytes(good)
