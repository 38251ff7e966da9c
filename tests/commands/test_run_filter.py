"""Conditions of --where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_cli.commands.run_filter import parse_where
from minigpt_cli.errors import UsageError

RUN: dict[str, Any] = {"arch": "moe", "lr": 1e-4, "n_layer": 4, "tag": ["keep", "old"], "note": "with a space"}
RUN |= {"bias": False, "group": None}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("arch=moe", True),
        ("arch==moe and lr<2e-4", True),
        ("arch=moe and lr>2e-4", False),
        ("arch=classic or n_layer>=4", True),
        ("not arch=moe", False),
        ("not (arch=classic or lr>1)", True),
        ("arch=classic or arch=moe and lr>1", False),  # and binds closer than or
        ("(arch=classic or arch=moe) and lr<1", True),
        ("tag=keep", True),
        ("tag!=keep", False),
        ("tag=new", False),
        ("note~space", True),
        ('note="with a space"', True),
        ("bias=off", True),
        ("bias", False),
        ("tag", True),
        ("group", False),
        ("group=x", False),
        ("group!=x", True),
        ("lr<fast", False),
        ("n_layer = 4", True),
    ],
)
def test_condition_means_what_it_says(condition: str, holds: bool) -> None:
    assert parse_where(condition, RUN)(RUN.get) is holds


@pytest.mark.parametrize(
    "condition",
    ["", "arch=", "=moe", "arch=moe and", "(arch=moe", "arch=moe)", "lrr<1", "arch=moe lr<1", "__class__=x", "(" * 200 + "arch"],
)
def test_what_is_not_understood_is_refused(condition: str) -> None:
    with pytest.raises(UsageError):
        parse_where(condition, RUN)


WORDS = ["arch", "lr", "tag", "group", "=", "<", "!=", "~", "moe", "2e-4", "keep", "and", "or", "not", "(", ")"]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
def test_any_text_is_refused_or_the_opposite_of_its_negation(condition: str) -> None:
    try:
        holds = parse_where(condition, RUN)(RUN.get)
    except UsageError:
        return
    assert parse_where(f"not ({condition})", RUN)(RUN.get) is not holds
