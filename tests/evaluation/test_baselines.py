"""Baselines equal their formulas, counted by hand."""

from __future__ import annotations

import lzma
from collections import Counter
from itertools import pairwise
from math import log

import pytest

from minigpt_cli.evaluation.baselines import baselines, count_baselines, find_kept, keep

TRAINING, TEXT = "abracadabra abracadabra\n", "abba dab?"


def test_counts_equal_a_loop() -> None:
    alphabet = [*sorted(set(TRAINING)), "unseen"]
    ones, pairs = Counter(TRAINING), Counter(pairwise(TRAINING))
    p1 = {c: (ones[c] + 1) / (len(TRAINING) + len(alphabet)) for c in alphabet}

    def p2(before: str, c: str) -> float:
        after = {pair: n for pair, n in pairs.items() if pair[0] == before}
        if not after:
            return p1[c]
        return (pairs[before, c] + len(after) * p1[c]) / (sum(after.values()) + len(after))

    coded = [c if c in ones else "unseen" for c in TEXT]
    uniform, unigram, bigram = count_baselines(TRAINING, TEXT)
    assert uniform == pytest.approx(log(len(alphabet)))
    assert unigram == pytest.approx(-sum(log(p1[c]) for c in coded) / len(TEXT))
    assert bigram == pytest.approx(-sum(log(p2(b, c)) for b, c in zip([TRAINING[-1], *coded], coded, strict=False)) / len(TEXT))


def test_probabilities_after_each_character_sum_to_one() -> None:
    from math import exp

    followers = [*sorted(set(TRAINING)), "\x00"]  # the last is unseen
    total = sum(exp(-2 * count_baselines(TRAINING, "a" + c)[2]) for c in followers)
    first = exp(-count_baselines(TRAINING, "a")[2])
    assert total / first == pytest.approx(1)


def test_xz_has_read_the_training_text() -> None:
    found = baselines(TRAINING * 50, TRAINING)
    assert found.xz < found.xz_alone / 3
    assert found.xz_alone == pytest.approx(8 * log(2) * len(lzma.compress(TRAINING.encode(), preset=9)) / len(TRAINING))


def test_texts_without_pairs_or_characters_have_baselines() -> None:
    for training, text in (("a", "b"), ("aa", "a"), ("", "xyz")):
        assert all(value >= 0 for value in count_baselines(training, text))


def test_kept_baselines_are_read_as_they_were_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found, path = baselines(TRAINING, TEXT), tmp_path / "scores" / "b.json"
    assert find_kept(path) is None
    keep(path, found)
    assert find_kept(path) == found
    path.write_text('{"uniform": NaN}')
    assert find_kept(path) is None
