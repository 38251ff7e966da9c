"""minigpt generate --prompts: the texts of single prompts, in order, and the rest of them after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("trained")

PROMPTS = ["To be", "not", "or", "be", "To", "to be"] * 4


@pytest.fixture
def asks(tmp_path: Path) -> Path:
    path = tmp_path / "asks.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n")
    return path


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_text_is_the_one_of_its_prompt_alone_in_the_order_of_the_file(cli: Any, asks: Path) -> None:
    found = rows(cli("generate", "first", "--prompts", str(asks), "--seed", "3", "--max-new-tokens", "15").out)
    assert [row["prompt"] for row in found] == PROMPTS
    for row in found[:6]:
        alone = cli("generate", "first", "-p", row["prompt"], "--seed", "3", "--max-new-tokens", "15", "--json").json["samples"][0]
        assert {name: row[name] for name in ("text", "n_tokens", "stop_reason")} == {
            name: alone[name] for name in ("text", "n_tokens", "stop_reason")
        }
        assert row["nats_per_token"] == pytest.approx(alone["nats_per_token"], abs=1e-4)


def test_a_row_brings_its_own_settings_and_its_seed_repeats_it(cli: Any, tmp_path: Path) -> None:
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"id": "a", "prompt": "To be", "max_new_tokens": 4, "temperature": 0}\n{"prompt": "not", "seed": 7, "top_k": 3}\n')
    first, second = rows(cli("generate", "first", "--prompts", str(asks), "--max-new-tokens", "9").out)
    assert (first["id"], first["n_tokens"], second["n_tokens"], second["seed"]) == ("a", 4, 9, 7)
    greedy = cli("generate", "first", "-p", "To be", "--greedy", "--max-new-tokens", "4", "--json").json["samples"][0]["text"]
    assert first["text"] == greedy
    again = cli("generate", "first", "-p", "not", "--seed", "7", "--top-k", "3", "--max-new-tokens", "9", "--json").json["samples"][0]
    assert second["text"] == again["text"]


@pytest.mark.parametrize("kept", [0, 1, 60, 400, 10**6])
def test_the_same_command_writes_the_rest_wherever_it_was_cut(cli: Any, asks: Path, tmp_path: Path, kept: int) -> None:
    out, flags = tmp_path / "out.jsonl", ("--seed", "3", "--max-new-tokens", "5")
    cli("generate", "first", "--prompts", str(asks), "--out", str(out), *flags)
    whole = out.read_bytes()
    out.write_bytes(whole[:kept])
    cli("generate", "first", "--prompts", str(asks), "--out", str(out), *flags)
    assert [row["text"] for row in rows(out.read_text())] == [row["text"] for row in rows(whole.decode())]
    assert out.read_bytes().count(b"\n") == len(PROMPTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "To be"}\n{"text": "x"}', 'line 2 is not an object with a "prompt"'),
        ('{"prompt": "To be", "temp": 1}', "line 1: unknown field 'temp'"),
        ('{"prompt": "To be", "temperature": -1}', "line 1: --temperature -1 must be"),
        ('{"prompt": "To be", "top_k": "3"}', "line 1: top_k is not a number"),
        ('{"prompt": "To be", "max_new_tokens": 0}', "line 1: max_new_tokens 0 must be at least 1"),
        ('{"prompt": "To be"}\n\n{"prompt": "Ж"}', "line 3: the char tokenizer does not know 'Ж'"),
        ("[1", "line 1"),
        ("", "holds no prompt"),
    ],
)
def test_a_row_with_an_error_is_named_before_anything_is_written(cli: Any, tmp_path: Path, content: str, message: str) -> None:
    asks, out = tmp_path / "asks.jsonl", tmp_path / "out.jsonl"
    asks.write_text(content)
    failed = cli("generate", "first", "--prompts", str(asks), "--out", str(out))
    assert failed.code == 2
    assert message in failed.err
    assert len(failed.err.splitlines()) == 1
    assert not out.exists()


def test_results_of_other_prompts_are_not_continued(cli: Any, asks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"prompt": "else", "text": "x"}\n')
    failed = cli("generate", "first", "--prompts", str(asks), "--out", str(out))
    assert "something other than the texts of these prompts" in failed.err
    assert out.read_text() == '{"prompt": "else", "text": "x"}\n'
