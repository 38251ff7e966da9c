"""Work in threads gives what it gives without them."""

from __future__ import annotations

import hashlib
from operator import length_hint

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.data import background
from minigpt_cli.data.background import BackgroundHash, in_threads


@given(st.lists(st.binary(max_size=9), max_size=40), st.binary(max_size=5))
def test_a_hash_in_the_background_is_that_of_the_whole(parts: list[bytes], before: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "_TOGETHER", 7)
        patch.setattr(background, "_AHEAD", 2)
        found = BackgroundHash(hashlib.sha256(before))
        for number, part in enumerate(parts, 1):
            found.update(part)
            if number % 5 == 0:
                assert found.hexdigest() == hashlib.sha256(before + b"".join(parts[:number])).hexdigest()
        assert found.hexdigest() == hashlib.sha256(before + b"".join(parts)).hexdigest()


def test_results_come_in_order_and_only_a_few_items_are_taken_ahead() -> None:
    items = iter(range(1, 1001))
    for number, square in enumerate(in_threads(lambda n: n * n, items), 1):
        assert square == number * number
        assert number + 2 * background.cores() >= 1000 - length_hint(items) - 1
    assert number == 1000


def test_an_error_in_a_thread_is_raised_where_its_result_is_asked_for() -> None:
    results = in_threads(lambda n: 1 // n, [2, 1, 0])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
