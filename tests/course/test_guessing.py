"""The guessing game is a proper code: whatever is tried, the probabilities of what may come next sum to 1."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import numpy as np
import pytest
from harness import tiny
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.cli import run as minigpt
from minigpt_cli.config import DataConfig
from minigpt_cli.course.guessing import CONTEXT, LENGTH, Game, difference, game_on, model_data, model_nats, passage
from minigpt_cli.data.encoding import prepared
from minigpt_cli.errors import TextTooShort, UsageError
from minigpt_cli.evaluation.baselines import count_baselines
from minigpt_cli.runstore.store import RunStore

TRAINING = "abracadabra "
OTHER = "\N{SNOWMAN}"
"""Stands for every character that is neither in the training text nor tried."""


def play(game: Game, tries: list[str]) -> None:
    """Make these tries for the next character, as far as they are needed, and then give up."""
    before = game.position
    for char in tries:
        if game.position == before:
            game.guess(char)
    if game.position == before:
        game.give_up()


strategies = st.lists(st.sampled_from([*"abcdr xy"]), max_size=3, unique=True)


@given(history=st.lists(st.tuples(strategies, st.sampled_from("abr?")), max_size=6), now=strategies)
def test_probabilities_of_the_next_character_sum_to_one(history: list[tuple[list[str], str]], now: list[str]) -> None:
    past = "".join(char for _, char in history)
    total = 0.0
    for following in {*TRAINING, *now, OTHER}:
        game = Game("", past + following, TRAINING)
        for tries, _ in history:
            play(game, tries)
        play(game, now)
        assert game.done
        total += exp(-game.nats[-1])
    assert total == pytest.approx(1)


def test_a_game_costs_what_the_formula_says() -> None:
    game = Game("x", "abz", TRAINING)
    assert game.guess("a")
    assert game.nats_per_char == pytest.approx(log(4))  # (0 + 1) / (0 + 4)
    assert [game.guess(char) for char in "rcd"] == [False, False, False]
    weights = {"a": 6, "b": 3, "r": 3, "c": 2, "d": 2, " ": 2, OTHER: 1}  # counts + 1
    rest = (0 + 1) / (1 + 4) * weights["b"] / (sum(weights.values()) - weights["r"] - weights["c"] - weights["d"])
    assert game.nats[1] == pytest.approx(-log(rest))
    game.guess(" ")
    game.give_up()  # the shares of the second and third try go to the rest as well
    assert game.nats[2] == pytest.approx(-log((1 + 1 + 2) / (2 + 4) * 1 / (sum(weights.values()) - 2)))
    assert (game.ranks, game.done, game.tries_left, game.shown) == ([1, 4, 4], True, 0, "xabz")
    assert game.uniform == pytest.approx(log(7))


def test_a_player_who_is_always_right_pays_less_and_less() -> None:
    target = "bra" * 13
    game = Game("a", target, TRAINING)
    for char in target:
        assert game.tries_left == 3
        assert game.guess(char)
    assert all(np.diff(game.nats) < 0)
    assert game.nats.sum() == pytest.approx(sum(log((n + 4) / (n + 1)) for n in range(len(target))))


@pytest.mark.parametrize("wrong", ["", "ab", "r"])
def test_a_try_is_one_new_character(wrong: str) -> None:
    game = Game("a", "b", TRAINING)
    game.guess("r")
    with pytest.raises(UsageError):
        game.guess(wrong)
    assert game.tries_left == 2
    game.guess("b")
    for late in (lambda: game.guess("c"), game.give_up):
        with pytest.raises(UsageError, match="over"):
            late()


def test_baselines_are_of_the_same_characters_in_their_context() -> None:
    game = Game("d", "abc", TRAINING)
    _, both = (2 * count_baselines(TRAINING, text)[2] for text in ("ab", "da"))
    first_pair = both - count_baselines(TRAINING, "d")[2]  # -ln p(a after d)
    game.guess("a")
    assert game.bigram == pytest.approx(first_pair)
    assert game.data["bigram_nats"] == [pytest.approx(first_pair, abs=1e-4)]
    assert game.data["target"] == "a"


def test_a_passage_can_be_typed_where_the_text_allows_it() -> None:
    held_out = ("“no” " * 60 + "a plain line of words that are easy to type here, and more of it. ") * 5
    context, target = passage(held_out, held_out, 3)
    assert (len(context), len(target)) == (CONTEXT, LENGTH)
    assert context + target in held_out
    assert not set(target) & set("“”")
    assert passage(held_out, held_out, 3) == (context, target)
    assert len({passage(held_out, held_out, seed) for seed in range(5)}) > 1
    assert len(passage("”" * 300, "a", 0)[1]) == LENGTH  # nothing better is there
    with pytest.raises(TextTooShort, match="240"):
        passage("a" * (CONTEXT + LENGTH - 1), "a", 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text of 4,000 characters, and a folder with a run that was trained on it."""
    folder = tmp_path_factory.mktemp("game")
    text = folder / "text.txt"
    text.write_text(tiny.text(4000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_RUNS_DIR", str(folder / "runs"))
        patch.setenv("MINIGPT_DATA_DIR", str(folder / "data"))
        assert minigpt(["train", str(text), "--name", "r", *tiny.training(20, 20)]) == 0
    return folder, text


def test_a_run_is_scored_on_exactly_the_characters_of_the_game(trained: tuple[Path, Path]) -> None:
    folder, text = trained
    dataset = prepared(DataConfig(source=[str(text)]), folder / "data")
    game = game_on(dataset, 1)
    assert game.context + game.target in text.read_text()[3600:]
    for char in game.target:
        play(game, ["a", char])
    run = RunStore(folder / "runs").find("r")
    kept = model_data(run, game.data)
    nats = model_nats(run, game.context, game.target)
    assert kept["nats"] == [pytest.approx(value, abs=1e-4) for value in nats]
    assert (kept["run"], kept["n_chars"]) == ("r", LENGTH)
    assert model_nats(run, game.context, game.target[:7]) == pytest.approx(nats[:7], abs=1e-5)  # what follows does not matter
    apart = difference(game.nats, nats)
    assert apart.mean == pytest.approx(game.nats_per_char - kept["nats_per_char"], abs=1e-3)
    assert apart.low < apart.mean < apart.high


@pytest.mark.parametrize("better", [0.0, 3.0])
def test_a_difference_is_a_tie_unless_it_is_larger_than_its_noise(better: float) -> None:
    draw = np.random.default_rng(0)
    a = draw.gamma(1, 2, LENGTH)
    found = difference(a, a + draw.normal(better, 1, LENGTH))
    assert (found.high < 0) == (better > 0)
