"""The server's page in a real browser: what it shows, what it says, and that it complains of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import browser

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
