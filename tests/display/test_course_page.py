"""The page to keep: what it says of bets, and what a real browser shows of it."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import pytest
from harness import browser

from minigpt_cli.display.pages.course import Bet, Course, Game, Made, Player, Question, course_page

HOSTILE = "</p><script>window.broken=1</script>"
BET = Bet("Counting", "Which is better?", [("pairs", 0.1), ("I", 0.8), (HOSTILE, 0.1)], 1, 1, -log(0.8), log(3))
COURSE = Course(
    about=f"On {HOSTILE}.",
    bets=[BET, replace(BET, outcome=2, nats=-log(0.1))],
    open_bets=1,
    game=Game(
        context=f"context {HOSTILE} " * 5,
        target="a\nbc" * 10,
        nats=[0.5, 1.5, 3.0, 7.0] * 10,
        players=[Player("you", 3.0), Player(HOSTILE, 2.0, (-1.0, -1.5, -0.5)), Player("pairs", 3.1, (0.1, -0.4, 0.6))],
        ranks=[1, 2, 3, 4] * 10,
    ),
    right=1,
    asked=2,
    missed=[Question("Luck", "What may be said?", HOSTILE, "Those weights are better.", "Recipes take several seeds.")],
    cases=[("before the course", "nothing is wrong", "its losses are measured on too few characters")],
    cases_about="One case is too few.",
    made=[Made("Counting", HOSTILE, "bigram, 200 steps", "2.4512 ±0.05"), Made("Cheating", "cheat", "without mask", "0.05", is_fair=False)],
)


def test_the_mean_of_bets_is_beside_that_of_guessing() -> None:
    page = course_page(COURSE)
    assert f"2 bets cost {(-log(0.8) - log(0.1)) / 2:.2f} nats each, more than always guessing, {log(3):.2f}. 1 more had" in page
    assert "One bet cost 0.22 nats, less than always guessing" in course_page(replace(COURSE, bets=[BET]))
    alike = replace(BET, nats=log(3))
    assert "as much as always guessing" in course_page(replace(COURSE, bets=[alike]))


def test_a_difference_within_its_interval_cannot_be_told() -> None:
    page = course_page(COURSE)
    assert '-1.50 to -0.50</td><td class="short">better than you' in page
    assert '-0.40 to +0.60</td><td class="short">cannot be told' in page


def test_what_was_not_done_has_no_section() -> None:
    page = course_page(Course(about="Nothing yet."))
    assert "<h2>" not in page
    assert "nan" not in page


@browser.needed
def test_the_page_is_whole_on_a_phone_and_a_screen_without_scripts(tmp_path: Path) -> None:
    page = tmp_path / "course.html"
    page.write_text(course_page(COURSE), "utf-8")
    assert "<script" not in page.read_text("utf-8")
    with browser.browser(tmp_path / "profile") as tab:
        for theme in ("light", "dark"):
            tab.open(page.as_uri())
            tab.theme(theme)
            tab.wait("document.readyState === 'complete' && document.querySelectorAll('h2').length === 5")
            for part in ("your bet", "✓", "A bet costs −ln p", HOSTILE, "Right is:", "†", "10 at the first try"):
                assert part in tab.evaluate("document.body.textContent"), part
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            with tab.phone():
                assert tab.evaluate("document.documentElement.scrollWidth") == 360
        assert tab.evaluate("window.broken") is None
        assert tab.complaints == []
        assert [url for url in tab.requests if not url.startswith("file:")] == []


@pytest.mark.parametrize("nats", [0.0, 1e-3, 700.0])
def test_any_cost_is_drawn(nats: float) -> None:
    assert f"It cost {nats:.2f} nats." in course_page(Course(about="", bets=[replace(BET, nats=nats)]))
