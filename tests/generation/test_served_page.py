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


def open_page(tab: browser.Page, url: str) -> None:
    """Open the server's page and wait until it can be used."""
    tab.open(url)
    tab.wait("document.body && document.body.hasAttribute('data-ready')")


@browser.needed
def test_the_page_writes_two_runs_side_by_side(server: Server, tmp_path: Path) -> None:
    with browser.browser(tmp_path / "profile") as tab:
        open_page(tab, server.url)
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
        open_page(tab, server.url)
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
def test_each_writing_takes_a_new_seed_unless_one_is_given(server: Server, tmp_path: Path) -> None:
    def seeds(tab: browser.Page) -> list[str]:
        tab.evaluate("document.querySelectorAll('.figures').forEach((f) => f.textContent = '')")
        tab.evaluate("document.getElementById('start').click()")
        tab.wait("[...document.querySelectorAll('.figures')].every((f) => f.textContent.includes('all written'))")
        tab.wait("!document.getElementById('start').disabled")
        return tab.evaluate("[...document.querySelectorAll('.figures')].map((f) => f.textContent.match(/seed (\\d+)/)[1])")

    with browser.browser(tmp_path / "profile") as tab:
        open_page(tab, server.url)
        tab.evaluate("document.getElementById('max_tokens').value = 5")
        first, second = seeds(tab), seeds(tab)
        assert first[0] == first[1]
        assert first != second
        tab.evaluate("document.getElementById('seed').value = 7")
        assert seeds(tab) == seeds(tab) == ["7", "7"]


@browser.needed
def test_prompts_from_the_text_are_offered(server: Server, tmp_path: Path) -> None:
    with browser.browser(tmp_path / "profile") as tab:
        tab.open(server.url)
        tab.wait("document.querySelectorAll && document.querySelectorAll('#examples button').length")
        assert tab.evaluate("[...document.querySelectorAll('#examples button')].map((b) => b.textContent)") == ["a b", "c"]
        tab.evaluate("document.querySelector('#examples button').click()")
        assert tab.evaluate("document.getElementById('prompt').value") == "ab"


@browser.needed
def test_a_wrong_key_is_said_and_asked_for_again(tmp_path: Path) -> None:
    with Server(api_key="right") as closed, browser.browser(tmp_path / "profile") as tab:
        open_page(tab, closed.url)
        said = "document.querySelector('.figures').textContent"
        tab.wait(f"{said}.includes('asks for an API key')")
        for key in ("wrong", "right"):
            tab.evaluate(f"document.getElementById('key').value = {key!r}")
            tab.evaluate("document.getElementById('start').click()")
            if key == "wrong":
                tab.wait(f"{said}.includes('key is wrong')")
                assert not tab.evaluate("document.getElementById('key_label').hidden")
        tab.wait("document.querySelector('.pane select').value === 'first'")
        assert tab.evaluate(said) == ""
        tab.evaluate("document.getElementById('key').value = 'forgotten'; document.getElementById('start').click()")
        tab.wait(f"{said}.includes('key is wrong')")


@browser.needed
def test_one_run_has_the_page_to_itself(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_runs = server.models.list_runs()
    monkeypatch.setattr(server.models, "list_runs", lambda: all_runs[:1])
    with browser.browser(tmp_path / "profile") as tab:
        open_page(tab, server.url)
        assert tab.evaluate("document.getElementById('right').hidden && document.querySelector('#left select').hidden")
        assert tab.evaluate("document.querySelector('h1').textContent") == "first"


@browser.needed
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_phone(server: Server, tmp_path: Path, theme: str) -> None:
    with browser.browser(tmp_path / "profile") as tab:
        tab.theme(theme)
        with tab.phone():
            tab.open(server.url)
            tab.wait("document.querySelectorAll && document.querySelectorAll('#examples button').length")
            assert tab.evaluate("document.documentElement.scrollWidth") <= 360
