"""Samples of what a model writes while it is trained: --sample-every, --sample-prompt, samples.jsonl and the live view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.evaluation.recipes import recipe_of
from minigpt_cli.runstore.store import RunStore
from tests.harness import tiny as tiny_runs
from tests.harness.terminal import run_on_terminal

CONSTANT = ["--schedule", "constant", "--dropout", "0.1", "--threads", "1"]  # a run of more steps is then the same run, further on


def samples(name: str) -> list[dict[str, Any]]:
    path = Path("runs") / name / "samples.jsonl"
    return [{k: v for k, v in json.loads(line).items() if k != "run"} for line in path.read_text(encoding="utf-8").splitlines()]


def test_nothing_is_written_off_a_terminal_unless_it_is_asked_for(trained: Path, cli: Any, tiny: list[str]) -> None:
    assert not (trained / "runs/first/samples.jsonl").exists()
    done = cli("train", "text.txt", "--name", "asked", "--sample-prompt", "To be", *tiny)
    assert [(sample["step"], sample["prompt"]) for sample in samples("asked")] == [(2, "To be"), (4, "To be")]
    assert done.err.count(" writes: To be") == 2


def test_each_sample_is_an_event_and_a_line_at_its_step(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", "--name", "third", "--json", *tiny, "--sample-every", "3", "--max-steps", "7")
    events = [event for event in done.events if event["event"] == "sampled"]
    assert [event["step"] for event in events] == [3, 6]
    assert [{k: v for k, v in event.items() if k != "run"} for event in events] == samples("third")
    assert all(len(event["text"]) == 200 for event in events)


def test_the_last_step_has_one_sample(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", "--name", "once", *tiny, "--sample-every", "3", "--eval-every", "4", "--max-steps", "6")
    assert [sample["step"] for sample in samples("once")] == [3, 6]
    assert done.err.count("step 6 writes") == 1


@pytest.mark.parametrize("arch", ["bigram", "classic", "modern", "moe"])
def test_training_is_the_same_with_and_without_samples(arch: str, trained: Path, cli: Any, tiny: list[str]) -> None:
    sizes = [] if arch != "bigram" else ["--block-size", "8"]
    short = [*tiny[2:], *CONSTANT] if arch != "bigram" else [*tiny[8:], "--threads", "1", *sizes]
    for name, every in (("with", "1"), ("without", "0")):
        assert cli("train", "text.txt", "--arch", arch, "--name", name, *short, "--sample-every", every).code == 0
    with_samples, without = (RunStore("runs").find(name) for name in ("with", "without"))
    for file in ("best.safetensors", "last.safetensors"):
        assert with_samples.record.files[file].sha256 == without.record.files[file].sha256
    assert recipe_of(with_samples) == recipe_of(without)
    assert len(samples("with")) == 4


def test_a_resumed_run_has_the_samples_of_the_uninterrupted_one(trained: Path, cli: Any, tiny: list[str]) -> None:
    flags = [*tiny, *CONSTANT, "--sample-every", "1", "--sample-prompt", "to suffer"]
    assert cli("train", "text.txt", "--name", "whole", *flags, "--max-steps", "6").code == 0
    assert cli("train", "text.txt", "--name", "parts", *flags, "--max-steps", "4").code == 0
    path = Path("runs/parts/samples.jsonl")
    later = path.read_text(encoding="utf-8").splitlines()[0].replace('"step":1', '"step":5')
    path.write_text(path.read_text(encoding="utf-8") + later + "\n" + later[:20], encoding="utf-8")  # written after the save, before a kill
    done = cli("train", "--resume", "parts", "--max-steps", "6", "--json")
    assert done.events[1]["exact"]
    assert samples("parts") == samples("whole")


def test_verify_reads_the_samples(trained: Path, cli: Any) -> None:
    assert cli("train", "--resume", "first", "--max-steps", "6", "--sample-every", "2").code == 0
    assert cli("runs", "verify", "first").code == 0
    Path("runs/first/samples.jsonl").write_text('{"run":"first","step":"two"}\n', encoding="utf-8")
    done = cli("runs", "verify", "first")
    assert done.code == 1
    assert "samples.jsonl" in done.out


def test_another_prompt_may_be_given_to_a_resumed_run(trained: Path, cli: Any) -> None:
    done = cli("train", "--resume", "first", "--max-steps", "6", "--sample-prompt", "or not")
    assert done.code == 0, done.err
    assert [sample["prompt"] for sample in samples("first")] == ["or not"]
    done = cli("train", "--resume", "first", "--max-steps", "8", "--sample-prompt", "that is the", "--json")
    assert done.code == 0, done.err
    assert RunStore("runs").find("first").config.eval.sample_prompt == "that is the"


def test_a_sample_of_short_documents_is_several_of_them(home: Path, cli: Any, tiny: list[str]) -> None:
    Path("names.txt").write_text("".join(f"{a}{b}\n" for a in "abcdefgh" for b in "abcdefgh" * 5), encoding="utf-8")
    done = cli("train", "names.txt", "--documents", "lines", *tiny, "--max-steps", "60", "--lr", "0.1")
    assert done.code == 0, done.err
    sample = done.out.partition("sample\n")[2].partition("next ")[0]
    assert len(sample.splitlines()) > 5
    assert "<|" not in sample


def test_a_prompt_with_unknown_characters_is_one_line_and_leaves_no_run(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", "--name", "none", "--sample-prompt", "été", *tiny)
    assert done.code == 2
    assert "--sample-prompt: " in done.err
    assert "é" in done.err
    assert not Path("runs/none").exists()


def test_a_model_of_conversations_answers_the_prompt(home: Path, cli: Any, tiny: list[str]) -> None:
    Path("chats.jsonl").write_text(tiny_runs.chats(), encoding="utf-8")
    done = cli("train", "chats.jsonl", "--name", "chat", *tiny, "--sample-prompt", "3+4")
    assert done.code == 0, done.err
    assert [sample["prompt"] for sample in samples("chat")] == ["3+4", "3+4"]
    assert "<|" not in samples("chat")[0]["text"]


def test_adapters_write_samples_too(trained: Path, cli: Any) -> None:
    steps = ["--max-steps", "4", "--eval-every", "2", "--batch-size", "4"]
    done = cli("train", "text.txt", "--name", "fine", "--init-from", "first", "--lora-rank", "2", *steps, "--sample-every", "2")
    assert done.code == 0, done.err
    assert len(samples("fine")) == 2


@pytest.mark.parametrize(("width", "height", "shown"), [(120, 30, True), (80, 40, True), (80, 24, False), (60, 24, False)])
def test_the_live_view_shows_a_sample_where_there_is_room(width: int, height: int, shown: bool, trained: Path, tiny: list[str]) -> None:
    steps = ["--max-steps", "12", "--eval-every", "3"]
    done = run_on_terminal(["train", "text.txt", "--name", "seen", *tiny, *steps], trained, width=width, height=height)
    assert done.code == 0, done.text
    assert ("what it writes after" in done.text) == shown
    assert samples("seen")[0]["step"] == 3
