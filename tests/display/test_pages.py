"""Pages: what they are made of, and what a real browser shows of them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from harness import browser

from minigpt_cli.display import terminal_chart
from minigpt_cli.display.charts import apart, save_chart
from minigpt_cli.display.generation import PROBABILITY_BANDS, ShownToken
from minigpt_cli.display.pages.chart import line_chart
from minigpt_cli.display.pages.intervals import Interval, interval_rows
from minigpt_cli.display.pages.page import asset, html_page, section, side_by_side, table, tag, theme_colours, tinted
from minigpt_cli.display.pages.tokens import probabilities_page
from minigpt_cli.display.tables import Column
from minigpt_cli.display.terminal_chart import Curve

HOSTILE = '</p><script>x</script><b title="\'">&amp;'


class Elements(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_is_escaped_wherever_it_is_placed() -> None:
    parts = [
        tag("p", HOSTILE, title=HOSTILE),
        section(HOSTILE, tinted(HOSTILE, 0.5, about=HOSTILE)),
        table([Column(HOSTILE)], [[HOSTILE], [tinted(HOSTILE, 1)]]),
        side_by_side([(HOSTILE, [HOSTILE])]),
        line_chart([Curve(HOSTILE, [0, 1], [0, 1])] * 2, x_label=HOSTILE, y_label=HOSTILE, marks=[(0, 0, HOSTILE)]),
    ]
    page = Elements(html_page(HOSTILE, parts))
    assert {"b", "script"}.isdisjoint(page.names)
    assert page.text.count(HOSTILE) == 17


def test_columns_and_sections_without_content_are_left_out() -> None:
    assert Elements(table([Column("a"), Column("b")], [["1", ""], ["2", ""]])).names.count("th") == 1
    assert section("nothing", table([Column("a")], []), line_chart([], x_label="x", y_label="y")) == ""


@pytest.mark.parametrize("ys", [[1e-14, 2e-14], [1e12, 1e12], [-1e12, 1e12], [0.0, 1e39], [1e12, 1e12 + 1]])
def test_a_chart_is_drawn_of_any_numbers(ys: list[float]) -> None:
    assert "polyline" in line_chart([Curve("a", [0.0, 2.0**63], ys)], x_label="x", y_label="y")


def test_intervals_lie_on_one_scale_with_zero_in_the_middle() -> None:
    rows = [Interval("a", -0.2, -0.1, "-0.15", 0, -0.15), Interval("bar", 0, 0.1, "+0.1", 1)]
    drawn = interval_rows(rows, ends=("left", "right"))
    places = [float(place) for place in re.findall(r"left:(-?[\d.]+)%", drawn)]
    assert places[0] == places[3] == places[4] == 50.0  # zero, and where the bar begins
    assert 0 < places[1] < places[2] < 50
    assert interval_rows([]) == ""
    assert Elements(interval_rows([Interval("same", 2, 2, "2", 0, 2)])).text.startswith("same")


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """The contrast ratio of two colours, 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def mixed(colour: str, ground: str, share: float) -> str:
    """`share` of a colour over a ground."""
    parts = (round(share * int(colour[i : i + 2], 16) + (1 - share) * int(ground[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_curves_stand_out_in_both_themes(theme: str) -> None:
    colour = theme_colours(dark=theme == "dark")
    for ground in ("paper", "field"):
        for text in ("ink", "dim", "wrong"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        for curve in range(7):
            assert contrast(colour[f"c{curve}"], colour[ground]) >= 3, (curve, ground)
    assert contrast(colour["paper"], colour["c0"]) >= 4.5  # the button that starts
    strongest = int(re.findall(r"--tint: (\d+)%", asset("style.css"))[theme == "dark"]) / 100
    for tint in ("c0", "c1"):
        assert contrast(colour["ink"], mixed(colour[tint], colour["paper"], strongest)) >= 4.5, tint


def of_256(number: int) -> str:
    """A colour of the terminal's cube of 6 × 6 × 6, or one of its greys."""
    levels = (0, 95, 135, 175, 215, 255)
    parts = [8 + 10 * (number - 232)] * 3 if number >= 232 else [levels[(number - 16) // place % 6] for place in (36, 6, 1)]
    return "#" + "".join(f"{part:02x}" for part in parts)


@pytest.mark.parametrize("ground", ["#ffffff", "#1e1e1e", "#000000"])
def test_colours_of_the_terminal_stand_out_on_light_and_dark(ground: str) -> None:
    for number in (*terminal_chart.COLOURS, *(colour for _, colour in PROBABILITY_BANDS)):
        assert contrast(of_256(number), ground) >= 3, number


def test_names_at_line_ends_do_not_lie_on_each_other() -> None:
    places = apart([0.5, 0.9, 0.5, 0.51], 0.1)
    low_to_high = sorted(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(low_to_high))
    assert places.index(max(places)) == 1
    assert apart([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("dark", [False, True])
def test_a_picture_has_the_colours_of_the_pages_and_a_name_at_each_end(tmp_path: Path, dark: bool) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    curves = [Curve("one", [0, 1], [2, 1], band=([1.9, 0.9], [2.1, 1.1])), Curve("two $x$", [0, 1], [2, 1.01])]
    save_chart(tmp_path / "a.svg", curves, x_label="steps", y_label="loss", dark=dark)
    svg, colour = (tmp_path / "a.svg").read_text("utf-8"), theme_colours(dark=dark)
    assert all(colour[name] in svg for name in ("paper", "c0", "c1"))
    assert "legend" not in svg
    assert "FillBetween" in svg
    found = {name: float(place) for place, name in re.findall(r'y="([\d.]+)"[^>]*>(one|two [$]x[$])<', svg)}  # as text, not as outlines
    assert abs(found["one"] - found["two $x$"]) > 11
    save_chart(tmp_path / "b.svg", curves, x_label="steps", y_label="loss", dark=dark)
    assert (tmp_path / "b.svg").read_text("utf-8") == svg


def test_html_data_cannot_end_the_script() -> None:
    hostile = "</script><script>alert(1)</script><!--<script>"
    page = probabilities_page("run", hostile, [ShownToken(hostile, hostile, 0.5, [(hostile, 0.5)])], "")
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "alert(1)" in data
    assert page.count("</script>") == 2


@browser.needed
def test_the_saved_view_works_without_a_server(tmp_path: Path) -> None:
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
    names = ["bytes:\\x20\\xe2", "bytes:\\x82", "bytes:\\xac", "é"]
    (tmp_path / "view.html").write_text(probabilities_page("first", "5", [ShownToken(n, "", 0.5, [(n, 0.5)]) for n in names], ""), "utf-8")
    with browser.browser(tmp_path / "profile") as tab:
        tab.open((tmp_path / "view.html").as_uri())
        tab.wait("document.querySelectorAll && document.querySelectorAll('.token').length === 4")
        assert tab.evaluate("[...document.querySelectorAll('.token')].map((t) => t.textContent)") == [" ", "", "€", "é"]
        assert tab.evaluate("document.querySelector('.alternatives .name').textContent") == "\\x20\\xe2"
        assert tab.complaints == []


SHOWN = "[...document.querySelectorAll('{}')].filter((e) => e.getClientRects().length).map((e) => e.textContent)"


@browser.needed
def test_curves_are_named_at_their_ends_and_on_a_phone_above_the_chart(tmp_path: Path) -> None:
    curves = [Curve("a run", [0, 2], [3, 1]), Curve("a run with a name that is far too long", [0, 1], [3, 1.02])]
    chart = line_chart(curves, x_label="steps", y_label="nats")
    (tmp_path / "a.html").write_text(html_page("loss", [section("Loss", chart)]), "utf-8")
    names = [curve.label for curve in curves]
    with browser.browser(tmp_path / "profile") as tab:
        tab.open((tmp_path / "a.html").as_uri())
        tab.wait("document.querySelectorAll && document.querySelectorAll('.ends text').length === 2")
        assert tab.evaluate(SHOWN.format("figcaption .named")) == []
        assert tab.evaluate(SHOWN.format(".ends text")) == [names[0], "a run with a …s far too long"]
        right, boxes = tab.evaluate(
            "[document.querySelector('figure').getBoundingClientRect().right, "
            "[...document.querySelectorAll('.ends text')].map((t) => t.getBoundingClientRect()).map((b) => [b.right, b.top, b.bottom])]"
        )
        assert max(box[0] for box in boxes) <= right
        (_, upper_top, upper_bottom), (_, lower_top, _) = sorted(boxes, key=lambda box: box[1])
        assert upper_top < upper_bottom <= lower_top + 1
        with tab.phone():
            assert tab.evaluate(SHOWN.format("figcaption .named")) == names
            assert tab.evaluate(SHOWN.format(".ends text")) == []


@browser.needed
def test_a_phone_shows_the_important_columns_of_a_table(tmp_path: Path) -> None:
    columns = [Column("run"), Column("nats/char", right=True), Column("time", 3, right=True), Column("steps", 6, right=True)]
    (tmp_path / "a.html").write_text(html_page("board", [table(columns, [["a", "1.5", "1:00", "200"]])]), "utf-8")
    with browser.browser(tmp_path / "profile") as tab:
        tab.open((tmp_path / "a.html").as_uri())
        tab.wait("document.querySelectorAll && document.querySelectorAll('th').length === 4")
        assert tab.evaluate(SHOWN.format("th")) == ["run", "nats/char", "time", "steps"]
        with tab.phone():
            assert tab.evaluate(SHOWN.format("th, td")) == ["run", "nats/char", "time", "a", "1.5", "1:00"]
