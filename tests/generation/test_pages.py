"""The pages in a real browser: what they show, what they say, and that they complain of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from . import browser
from .server import Server, alone


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@browser.needed
def test_the_page_writes_two_runs_side_by_side(server: Server, tmp_path: Path) -> None:
    with browser.browser(tmp_path / "profile") as tab:
        tab.open(server.url)
        tab.wait("document.body && document.body.hasAttribute('data-ready')")
        assert tab.evaluate("[...document.querySelectorAll('.pane select')].map((s) => s.value)") == ["first", "second"]
        assert tab.evaluate("document.getElementById('key_label').hidden")
        settings = {"prompt": "abc", "max_tokens": "50", "temperature": "0.8", "seed": "5", "top_k": "6"}
        for name, value in settings.items():
            tab.evaluate(f"document.getElementById({name!r}).value = {value!r}")
        tab.evaluate("document.getElementById('start').click()")
        tab.wait("[...document.querySelectorAll('.figures')].every((f) => f.textContent.includes('all written'))")
        texts = tab.evaluate("[...document.querySelectorAll('.pane .text')].map((t) => t.textContent)")
        assert texts == ["abc" + alone("abc", 50, 5, name, temperature=0.8, top_k=6)[0] for name in ("first", "second")]
        tab.evaluate("document.querySelectorAll('.pane .token')[3].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
        rows = tab.evaluate("[...document.querySelectorAll('#left .alternatives tr')].map((r) => [...r.cells].map((c) => c.textContent))")
        assert 5 <= len(rows) <= 6
        p = [float(row[1]) for row in rows]
        assert all(0 <= x <= 1 for x in p)
        assert tab.evaluate("document.querySelectorAll('#left .alternatives .is').length") == 1
        assert tab.complaints == []


@browser.needed
def test_the_page_says_what_went_wrong_and_can_be_stopped(server: Server, tmp_path: Path) -> None:
    with browser.browser(tmp_path / "profile") as tab:
        tab.open(server.url)
        tab.wait("document.body && document.body.hasAttribute('data-ready')")
        tab.evaluate("document.getElementById('prompt').value = 'XYZ'; document.getElementById('start').click()")
        tab.wait("document.querySelector('.figures').textContent.includes('does not know')")
        tab.evaluate("document.getElementById('prompt').value = 'a'; document.getElementById('max_tokens').value = 8000")
        tab.wait("!document.getElementById('start').disabled")
        tab.evaluate("document.getElementById('start').click()")
        tab.wait("document.querySelectorAll('#left .token').length > 5")
        tab.evaluate("document.getElementById('stop').click()")
        tab.wait("document.querySelector('.figures').textContent.includes('stopped by you')")
    server.wait_until_idle()


@browser.needed
def test_the_saved_view_works_without_a_server(tmp_path: Path) -> None:
    from minigpt_cli.display.generation import ShownToken, probabilities_page

    hostile = "</script><b>"
    tokens = [ShownToken("a", "a", 0.9, [("a", 0.9), ("b", 0.1)]), ShownToken(hostile, hostile, 0.01, [("\n", 0.5), (" ", 0.2)])]
    (tmp_path / "view.html").write_text(probabilities_page("first", "To ", tokens, "facts"), "utf-8")
    with browser.browser(tmp_path / "profile") as tab:
        tab.open((tmp_path / "view.html").as_uri())
        tab.wait("document.querySelectorAll && document.querySelectorAll('.token').length === 2")
        assert tab.evaluate("document.getElementById('text').textContent") == "To a" + hostile
        tab.evaluate("document.getElementById('text').dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}))")
        rows = tab.evaluate("[...document.querySelectorAll('.alternatives tr')].map((r) => r.cells[0].textContent)")
        assert rows == ["⏎", "␣", hostile]
        assert tab.complaints == []


@browser.needed
def test_a_character_split_over_tokens_is_whole_in_the_saved_view(tmp_path: Path) -> None:
    from minigpt_cli.display.generation import ShownToken, probabilities_page

    names = ["bytes:\\x20\\xe2", "bytes:\\x82", "bytes:\\xac", "é"]
    (tmp_path / "view.html").write_text(probabilities_page("first", "5", [ShownToken(n, "", 0.5, [(n, 0.5)]) for n in names], ""), "utf-8")
    with browser.browser(tmp_path / "profile") as tab:
        tab.open((tmp_path / "view.html").as_uri())
        tab.wait("document.querySelectorAll && document.querySelectorAll('.token').length === 4")
        assert tab.evaluate("[...document.querySelectorAll('.token')].map((t) => t.textContent)") == [" ", "", "€", "é"]
        assert tab.evaluate("document.querySelector('.alternatives .name').textContent") == "\\x20\\xe2"
        assert tab.complaints == []


def test_probability_bands_cover_all() -> None:
    from minigpt_cli.display.generation import band

    assert len({band(p) for p in np.linspace(0, 1, 101)}) == 5
