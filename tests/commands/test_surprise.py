"""minigpt eval --top and --html: every character has its nats, and what was expected there is what the model says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from harness import browser, tiny
from rich.cells import cell_len

from minigpt_cli.evaluation.eval_target import Target
from minigpt_cli.evaluation.evaluate_run import evaluate_run, read_text
from minigpt_cli.evaluation.surprise import Cell, surprise
from minigpt_cli.runstore.directory import Run

MIXED = "Père 🙂 </script> 漢字かな!\n" * 120
KINDS = {
    "char": ("text.txt", ["--tokenizer", "char"]),
    "byte": ("text.txt", ["--tokenizer", "byte"]),
    "bpe": ("text.txt", ["--tokenizer", "bpe", "--vocab-size", "300"]),
    "documents": ("rows.txt", ["--documents", "lines"]),
    "chats": ("chats.jsonl", []),
}


def trained_on(cli: Any, home: Path, kind: str) -> Run:
    """A tiny run on one kind of text."""
    (home / "text.txt").write_text(MIXED, encoding="utf-8")
    (home / "rows.txt").write_text("".join(f"row {i} of many\n" for i in range(90)), encoding="utf-8")
    (home / "chats.jsonl").write_text(tiny.chats(), encoding="utf-8")
    source, flags = KINDS[kind]
    assert cli("train", source, "--name", kind, *tiny.training(4, 2), *flags).code == 0
    return Run(home / "runs" / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cells_of_a_text_are_its_characters_and_their_nats_its_score(cli, home: Path, kind: str) -> None:
    run = trained_on(cli, home, kind)
    found = evaluate_run(run)
    shown = surprise(found, Target(), top=3, shown=10**6)
    scored = [cell for cell in shown.beginning if cell.token]
    assert "".join(cell.text for cell in scored) == found.score.text.decode()
    assert sum(cell.nats for cell in scored) == pytest.approx(found.score.nats_per_char * found.score.n_chars, rel=1e-5)
    assert len(shown.passages) == (1 if kind == "chats" else 3)  # a few answers of a digit
    for passage in shown.passages:
        text = found.score.text.decode()
        assert text[passage.start :].startswith(passage.text)
        assert passage.nats_per_char == pytest.approx(sum(cell.nats for cell in passage.cells) / len(passage.text), rel=1e-5)
        assert passage.place.split()[0] == {"documents": "document", "chats": "answer"}.get(kind, "line")
    unscored = "".join(cell.text for cell in shown.beginning if not cell.token)
    assert bool(unscored) == (kind in ("documents", "chats"))


def test_a_cell_of_one_token_has_its_probability_and_the_best_guesses_in_order(cli, trained: Path) -> None:
    run = Run(trained / "runs" / "first")
    for stride in (0, 3):
        target = Target(stride=stride)
        cells = surprise(evaluate_run(run, target), target, shown=200).beginning
        assert len(cells) == 200
        for cell in cells:
            assert cell.probability == pytest.approx(math.exp(-cell.nats), rel=1e-3)
            probabilities = [p for _, p in cell.expected]
            assert probabilities == sorted(probabilities, reverse=True)
            assert len(probabilities) == 5
            assert cell.probability <= probabilities[0] + 1e-9
            assert dict(cell.expected).get(cell.token, cell.probability) == pytest.approx(cell.probability)


def test_a_strange_word_is_the_most_surprising_passage_of_a_familiar_text(cli, home: Path) -> None:
    (home / "text.txt").write_text("abcd" * 600 + "dddd", encoding="utf-8")
    assert cli("train", "text.txt", *tiny.training(40, 20)).code == 0
    (home / "other.txt").write_text("abcd" * 30 + "dcba" + "abcd" * 30, encoding="utf-8")
    document = cli("eval", "--data", "other.txt", "--top", "4", "--json").json
    first = document["surprising"][0]
    assert first["start"] <= 123 < first["start"] + 32
    assert first["peak"]["expected"][0]["token"] != first["peak"]["token"]
    assert [p["nats_per_char"] for p in document["surprising"]] == sorted(
        (p["nats_per_char"] for p in document["surprising"]), reverse=True
    )


def test_the_table_fits_sixty_columns_of_wide_characters(cli, home: Path) -> None:
    trained_on(cli, home, "byte")
    lines = cli("eval", "--text", "漢字かな" * 20, "--top", "2").out.split("most surprising\n")[1].splitlines()
    assert len(lines) == 5
    assert max(map(cell_len, lines)) <= 60
    assert "expected" in lines[2]


def test_a_given_text_is_read_as_the_text_of_the_run_was(cli, home: Path) -> None:
    (home / "text.txt").write_text("To Be Or Not " * 90, encoding="utf-8")
    assert cli("train", "text.txt", "--lowercase", *tiny.training(2, 1)).code == 0
    assert cli("eval", "--text", "NOT TO BE", "--json").json["n_chars"] == 9


def test_a_long_text_is_shown_in_part_and_the_page_says_so(cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt_cli.evaluation.surprise.SHOWN", 100)
    trained_on(cli, home, "char")
    assert cli("eval", "--html", "page.html").code == 0
    page = (home / "page.html").read_text(encoding="utf-8")
    assert "The first 100 of " in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert sum(len(entry[3]) for entry in data["tokens"]) == 100
    assert page.count("<script") == 2


def test_the_text_of_questions_counts_for_the_length_of_what_is_shown(cli, home: Path) -> None:
    run = trained_on(cli, home, "chats")
    (home / "long.jsonl").write_text(tiny.chats(200), encoding="utf-8")
    target = read_text("long.jsonl")
    shown: list[Cell] = surprise(evaluate_run(run, target), target, shown=300).beginning
    assert 0 < sum(len(cell.text) for cell in shown) <= 400


@browser.needed
def test_the_page_shows_the_text_and_what_was_expected_at_each_character(cli, home: Path, tmp_path: Path) -> None:
    trained_on(cli, home, "byte")
    text = "Père 🙂 </script> 漢字"
    assert cli("eval", "--text", text, "--html", "page.html").code == 0
    with browser.browser(tmp_path / "profile") as tab:
        tab.open((home / "page.html").as_uri())
        tab.wait("document.querySelectorAll('.token').length > 0")
        assert tab.evaluate("document.getElementById('text').textContent") == text
        assert tab.evaluate("document.querySelectorAll('.token').length") == len(text)
        press = "document.getElementById('text').dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}))"
        tab.evaluate(press)
        assert tab.evaluate("document.querySelector('.token.chosen').textContent") == "字"
        assert 5 <= tab.evaluate("document.querySelectorAll('#alternatives tr').length") <= 6
        assert tab.complaints == []
