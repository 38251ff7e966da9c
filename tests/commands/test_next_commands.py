"""What a command suggests to type next works as it stands, for every tokenizer and every kind of run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.commands.train_run import StopSignals
from minigpt_cli.data.opening import Opening, opening_of
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.pretrained import load_tokenizer

TEXTS = {
    "english": "A cat sat on the mat.\nWhy did it?\n",
    "names": "emma\nolivia\nava\n",
    "chinese": "白日依山盡\n黃河入海流\n欲窮千里目\n",
    "numbers": "12 34\n56 78\n",
    "one line": 'he said "no" and left `it` $HOME \\ there! ',
    "dashes": "- - -\n--chat\n-- x\n",
    "marks alone": "?!.\n...\n",
    "arabic": "السلام عليكم\nمرحبا\n",
}


def suggested(output: str) -> list[list[str]]:
    """The arguments of every command after `next`."""
    lines = output.partition("\nnext    ")[2].splitlines()
    commands = [shlex.split(line.strip()) for line in lines]
    assert commands
    assert all(command[0] == "minigpt" for command in commands)
    return [command[1:] for command in commands]


def works(cli: Any, output: str) -> list[str]:
    """Run all that is suggested; the command lines."""
    for command in suggested(output):
        more = ["--max-new-tokens", "2"] if command[0] == "generate" else []
        done = cli(*command, *more)
        assert done.code == 0, (command, done.err)
    return [" ".join(command) for command in suggested(output)]


@pytest.mark.parametrize("kind", TEXTS)
def test_a_prompt_is_taken_from_the_runs_own_text(kind: str, cli: Any, home: Path, tiny: list[str]) -> None:
    (home / "text.txt").write_text(TEXTS[kind] * 40, encoding="utf-8")
    generate, *_ = works(cli, cli("train", "text.txt", *tiny).out)
    words = generate.partition("--prompt ")[2]
    assert words in TEXTS[kind]
    assert bool(words) == (kind != "marks alone")


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_the_suggested_prompt_works_with_every_tokenizer(tokenizer: str, cli: Any, home: Path, tiny: list[str]) -> None:
    (home / "text.txt").write_text(TEXTS["chinese"] * 40, encoding="utf-8")
    generate, *_ = works(cli, cli("train", "text.txt", "--tokenizer", tokenizer, "--vocab-size", "260", *tiny).out)
    assert generate.partition("--prompt ")[2] in TEXTS["chinese"]


def conversations(path: Path, question: str = "how is the cat") -> None:
    rows = [{"prompt": f"{question} {i % 3}?", "completion": "fine, 5 €!"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_run_that_learned_to_chat_is_asked_a_question_and_shown_answering_one(
    tokenizer: str, cli: Any, home: Path, tiny: list[str]
) -> None:
    conversations(home / "chats.jsonl")
    done = cli("train", "chats.jsonl", "--tokenizer", tokenizer, *tiny)
    generate, *_ = works(cli, done.out)
    assert re.fullmatch(r"generate modern-1 --chat --prompt how is the cat \d\?", generate)
    sample = done.out.partition("sample\n")[2].partition("next ")[0]
    assert sample.startswith("  how is the cat")
    assert not re.search(r"<\|\w+\|>", sample)


def test_fine_tuning_on_conversations_with_new_characters_learns_them(trained: Path, cli: Any, tiny: list[str]) -> None:
    conversations(trained / "chats.jsonl")
    done = cli("train", "chats.jsonl", "--init-from", "first", "--name", "talker", *tiny[2:])
    assert "'!'" in done.err
    assert "'|'" not in done.err  # of the template's own marks
    works(cli, done.out)


def test_the_suggested_commands_work_with_adapters(trained: Path, cli: Any, tiny: list[str]) -> None:
    works(cli, cli("train", "text.txt", "--init-from", "first", "--lora-rank", "2", "--name", "tuned", *tiny[2:]).out)


def test_runs_in_another_folder_with_spaces_in_its_name(cli: Any, home: Path, tiny: list[str]) -> None:
    (home / "text.txt").write_text(TEXTS["english"] * 40, encoding="utf-8")
    done = cli("train", "text.txt", "--runs-dir", "my runs/of today", *tiny)
    assert all(line.endswith("--runs-dir my runs/of today") for line in works(cli, done.out))


@pytest.mark.parametrize("reason", ["signal", "time limit"])
def test_an_interrupted_run_goes_on(reason: str, trained: Path, cli: Any, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--time-limit", "1ms"] if reason == "time limit" else []
    with monkeypatch.context() as patch:
        if reason == "signal":
            patch.setattr(StopSignals, "poll", lambda _: StopReason.INTERRUPTED_KEYBOARD)
            patch.setattr(StopSignals, "number", 2, raising=False)
        done = cli("train", "text.txt", "--name", "cut", *tiny, "--max-steps", "9", *flags)
    resume, *_ = works(cli, done.out)
    assert resume.startswith("train --resume cut")
    assert RunStore("runs").find("cut").record.stop_step == 9


def test_the_same_sweep_and_the_same_search_go_on(trained: Path, cli: Any, tiny: list[str]) -> None:
    sweep = ["train", "text.txt", "--seeds", "2", "--name", "both", *tiny]
    assert "the same command goes on" in cli(*sweep).err
    assert cli(*sweep).code == 0


def test_exports_and_imports(trained: Path, cli: Any, home: Path) -> None:
    assert cli("runs", "export", "first", "--out", "out folder").code == 0
    card = (home / "out folder/README.md").read_text(encoding="utf-8")
    (prompt,) = re.findall(r'ids = tokenizer\(("[^"]*")', card)
    run = RunStore("runs").find("first")
    assert len(load_tokenizer(run.file("tokenizer.json")).encode(json.loads(prompt))) > 0
    done = cli("runs", "import", "out folder", "--name", "again")
    assert works(cli, "\n" + done.out)[0].startswith("generate again")
    refused = cli("train", "text.txt", "--init-from", "out folder", "--lora-rank", "2")
    assert 'minigpt runs import "out folder" --name base' in " ".join(refused.err.split())


def test_a_missing_text_gets_a_prompt_that_the_tokenizer_knows(trained: Path) -> None:
    record = RunStore("runs").find("first").record.model_copy(update={"corpus": None})
    assert opening_of(record, CharTokenizer([ord(c) for c in "The "])) == Opening("The ")
    assert opening_of(record, CharTokenizer([ord("x")])) == Opening("")
    corpus = RunStore("runs").find("first").record.corpus
    assert corpus is not None
    for folder in ("gone", "no\0path"):
        elsewhere = record.model_copy(update={"corpus": corpus.model_copy(update={"dataset_dir": folder})})
        assert opening_of(elsewhere, CharTokenizer([ord("x")])) == Opening("")
