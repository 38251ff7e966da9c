"""A kept score is read as it was written, and nothing else is read as a score."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from minigpt_cli.evaluation import cache
from minigpt_cli.evaluation.cache import ScoreKey
from minigpt_cli.evaluation.scores import Score, make_score


@pytest.fixture
def score() -> Score:
    nats = np.random.default_rng(0).exponential(1.5, 3000).astype(np.float32).astype(np.float64)
    text = ("to be or nöt " * 300)[:3000].encode()
    return make_score(nats, nats, np.arange(3000) % 8, text)


@pytest.fixture
def key(score: Score) -> ScoreKey:
    return ScoreKey("w" * 64, score.text_sha256, before_sha256="b" * 64)


def test_a_kept_score_is_read_as_it_was_written(tmp_path: Path, score: Score, key: ScoreKey) -> None:
    assert cache.find(tmp_path, key) is None
    cache.keep(tmp_path, key, score)
    found = cache.find(tmp_path, key)
    assert found is not None
    for field in dataclasses.fields(Score):
        assert np.array_equal(getattr(found, field.name), getattr(score, field.name)), field.name


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "x"}, {"text_sha256": "x"}, {"before_sha256": ""}, {"stride": 2}, {"precision": "bf16"}]
)
def test_anything_that_changes_the_score_changes_the_key(tmp_path: Path, score: Score, key: ScoreKey, change: dict[str, object]) -> None:
    cache.keep(tmp_path, key, score)
    assert cache.find(tmp_path, dataclasses.replace(key, **change)) is None  # type: ignore[arg-type]


def test_cells_are_means_of_the_characters(tmp_path: Path, score: Score, key: ScoreKey) -> None:
    cache.keep(tmp_path, key, score)
    cells, cell = cache.find_cells(tmp_path, key), cache.cell_chars(3000)
    assert cells is not None
    assert cells[1] == pytest.approx(score.char_nats[cell : 2 * cell].mean())
    assert len(cells) == 3000 // cell


def test_damaged_files_are_treated_as_missing(tmp_path: Path, score: Score, key: ScoreKey) -> None:
    cache.keep(tmp_path, key, score)
    path = key.path(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert cache.find(tmp_path, key) is None
        assert cache.find_cells(tmp_path, key) is None
    for at in rng.integers(0, 900, 200):  # in the header
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        found = cache.find(tmp_path, key)
        assert found is None or found.n_chars == len(found.char_nats)
        cache.find_cells(tmp_path, key)
