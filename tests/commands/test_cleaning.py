"""A run of a cleaned text: what is typed and what is scored is cleaned like its text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt_cli.runstore.store import RunStore

Cli = Callable[..., Any]


def test_prompts_and_texts_are_read_as_the_run_knows_them(trained: Path, cli: Cli, tiny: list[str], text: str) -> None:
    flags = ["--lowercase", "--normalize", "nfc", "--max-chars", "3000"]
    done = cli("train", "text.txt", "--name", "lower", *flags, *tiny)
    assert done.code == 0
    assert "--lowercase: 120 characters made lowercase" in done.err
    assert "the training text is its first 3,000 characters" in done.err
    assert RunStore("runs").find("lower").config.data.max_chars == 3000

    typed = [
        cli("generate", "lower", "--prompt", prompt, "--max-new-tokens", "9", "--greedy", "--json").json["samples"]
        for prompt in ("To BE", "to be")
    ]
    assert typed[0] == typed[1]

    Path("upper.txt").write_text(text.upper())
    Path("small.txt").write_text(text.lower())
    loud, quiet = (cli("eval", "lower", "--data", file, "--json") for file in ("upper.txt", "small.txt"))
    assert "made lowercase" in loud.err
    assert "made lowercase" not in quiet.err
    assert loud.json["nats_per_char"] == quiet.json["nats_per_char"]
    assert loud.json["text_sha256"] == quiet.json["text_sha256"]
    refused = cli("eval", "lower", "--data", "upper.txt", "--no-lowercase")
    assert refused.code == 2
    assert "does not know 'A'" in refused.err

    Path("common.txt").write_text("to be, or not to be, that is the question\n" * 40)
    unlike = cli("compare", "first", "lower", "--data", "common.txt", "--json")
    assert unlike.code == 2
    assert "cleaned in different ways: say how to read this one, with --normalize nfc or --normalize off" in unlike.err
    alike = cli("compare", "first", "lower", "--data", "common.txt", "--lowercase", "--normalize", "off", "--json")
    assert alike.code == 0
    assert cli("runs", "diff", "first", "lower").out.count("lowercase") >= 1


def test_a_run_on_prepared_tokens_reads_prompts_as_their_text_was(trained: Path, cli: Cli, tiny: list[str]) -> None:
    assert cli("tokenize", "text.txt", "--lowercase", "--out", "tokens").code == 0
    done = cli("train", "tokens", "--name", "ready", *tiny)
    assert done.code == 0
    assert [line.split()[0] for line in done.err.splitlines()].count("validation") == 1  # what was read is told once
    assert RunStore("runs").find("ready").config.data.lowercase
    assert cli("generate", "ready", "--prompt", "To BE", "--max-new-tokens", "2").code == 0
    assert cli("train", "--resume", "ready", "--max-steps", "6").code == 0
