"""Verdicts, seeds, kinds of characters, passages."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation.comparison import KINDS, Side, by_kind, by_position, character_kinds, compare_pairs, most_different
from minigpt_cli.evaluation.scores import Score, make_score
from minigpt_cli.evaluation.seeds import group_of, grouped_test, outlook

TEXT = ("To be, or not to be:\n" * 500)[:10_000]


def score(rng: np.random.Generator, mean: float = 1.5, text: str = TEXT, base: np.ndarray | None = None) -> Score:
    nats = mean + 0.2 * rng.standard_normal(len(text)) + (0 if base is None else base)
    return make_score(nats, nats, np.arange(len(text)) % 8 + 1, text.encode())


def test_verdicts_name_the_better_side() -> None:
    rng = np.random.default_rng(0)
    good, bad, twin = (Side(name, (score(rng, mean),)) for name, mean in (("good", 1.4), ("bad", 1.5), ("twin", 1.4)))
    verdicts = {(p.a, p.b): p.verdict for p in compare_pairs([good, bad, twin])}
    assert verdicts == {("good", "bad"): "a_better", ("good", "twin"): "indistinguishable", ("bad", "twin"): "b_better"}


def test_several_pairs_are_adjusted() -> None:
    rng = np.random.default_rng(1)
    sides = [Side(str(i), (score(rng, 1.5),)) for i in range(4)]
    assert all(pair.p_holm >= pair.test.p_value for pair in compare_pairs(sides))


def test_different_texts_are_refused() -> None:
    rng = np.random.default_rng(2)
    with pytest.raises(UsageError, match="different texts"):
        compare_pairs([Side("a", (score(rng),)), Side("b", (score(rng, text=TEXT[1:]),))])


def test_one_seed_compares_weights_and_several_compare_recipes() -> None:
    rng = np.random.default_rng(3)
    one, two = Side("one", (score(rng),)), Side("two", (score(rng), score(rng)))
    assert [p.question for p in compare_pairs([one, two])] == ["weights"]
    assert [p.question for p in compare_pairs([two, Side("also two", (score(rng), score(rng)))])] == ["recipes"]


def test_recipes_that_differ_less_than_their_seeds_are_indistinguishable() -> None:
    rng = np.random.default_rng(4)
    wrong_weights = wrong_recipes = 0
    for _ in range(60):
        text = rng.standard_normal(len(TEXT))
        a, b = (tuple(score(rng, 1.5 + 0.02 * rng.standard_normal(), base=text) for _ in range(3)) for _ in range(2))
        wrong_weights += compare_pairs([Side("a", a[:1]), Side("b", b[:1])])[0].verdict != "indistinguishable"
        wrong_recipes += compare_pairs([Side("a", a), Side("b", b)])[0].verdict != "indistinguishable"
    assert wrong_weights > 40  # these weights do differ
    assert wrong_recipes <= 7


def test_the_further_seeds_needed_are_plausible() -> None:
    rng = np.random.default_rng(5)
    a, b = ([1.5 + offset + spread + 0.05 * rng.standard_normal(8000) for spread in (-0.02, 0.0, 0.025)] for offset in (0.0, 0.02))
    found = grouped_test(a, b)
    further = outlook(found, *(group_of([float(x.mean()) for x in side]) for side in (a, b))).further_seeds
    assert found.difference.low < 0 < found.difference.high
    assert further is not None
    assert 5 <= further <= 30
    tiny = grouped_test([x - 0.02 + 1e-6 for x in b], a[::-1])
    assert outlook(tiny, group_of([1.5, 1.52]), group_of([1.5, 1.52])).further_seeds in (None, 0)


def test_each_character_gets_its_kind() -> None:
    text = "Ab 1, c\n" * 300 + "é"
    kinds = [KINDS[k] for k in character_kinds(text)]
    assert kinds[:8] == ["word-initial", "inside a word", "space", "digit", "punctuation", "space", "word-initial", "newline"]
    assert kinds[-1] == "rare"


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(6)
    sides = [Side("a", (score(rng),)), Side("b", (score(rng),))]
    for parts in (by_kind(sides, TEXT), by_position(sides)):
        assert sum(part.share for part in parts) == pytest.approx(1)
        for i, side in enumerate(sides):
            assert sum(part.share * part.nats_per_char[i] for part in parts) == pytest.approx(side.char_nats.mean())


def test_the_most_different_passage_is_found() -> None:
    nats = np.full(len(TEXT), 1.0)
    worse = nats.copy()
    worse[4000:4160] += 1
    a, b = (Side(name, (make_score(x, x, np.ones(len(TEXT), dtype=np.int64), TEXT.encode()),)) for name, x in (("a", nats), ("b", worse)))
    passages = most_different(a, b, TEXT)
    assert len(passages) >= 1
    assert abs(passages[0].start - 4000) <= 20
    assert passages[0].delta == pytest.approx(-1)
    assert all(p.text == TEXT[p.start : p.start + len(p.text)] and len(p.text) == len(p.differences) for p in passages)
    assert most_different(a, a, TEXT) == []


def test_passages_go_from_word_to_word() -> None:
    words = "alpha beta gamma delta " * 60
    a = np.ones(len(words))
    a[501:640] = 0.1
    position = np.ones(len(words), dtype=np.int64)
    sides = [Side(name, (make_score(x, x, position, words.encode()),)) for name, x in (("a", a), ("b", np.ones(len(words))))]
    for passage in most_different(*sides, words):
        assert set(passage.text.split()) <= {"alpha", "beta", "gamma", "delta"}
        assert len(passage.differences) == len(passage.text)
