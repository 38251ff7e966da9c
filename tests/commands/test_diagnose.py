"""minigpt runs diagnose: its words, its JSON, its commands, and the line at the end of a training."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from harness import tiny

from minigpt_cli.commands.diagnose import commands_for, sure_finding
from minigpt_cli.evaluation.diagnosis import RULES, Finding
from minigpt_cli.runstore.directory import Run

ARCHITECTURES = {"modern": [], "moe": ["--arch", "moe", "--moe-balance", "none"], "bigram": ["--arch", "bigram"]}


def test_a_leak_is_found_with_its_evidence_its_hit_rate_and_two_commands(cli, trained: Path) -> None:
    document = cli("runs", "diagnose", "first", "--json").json
    assert document["run"] == "first"
    assert document["healthy"] is False
    leak = document["findings"][0]
    assert leak.keys() == {"finding", "evidence", "right", "of", "try", "confirm"}
    assert leak["finding"] == "leak between splits"  # the text repeats itself
    assert leak["evidence"].startswith("100% of the validation text")
    out = cli("runs", "diagnose").out
    assert f"right in {leak['right']} of {leak['of']} known cases" in out
    assert f"try          {leak['try']}" in out
    assert f"confirm      {leak['confirm']}" in out


def test_a_run_without_a_fault_is_healthy_or_too_short_to_tell(cli, home: Path) -> None:
    import random

    draw = random.Random(1)
    (home / "text.txt").write_text("".join(draw.choice("abcdefgh \n") for _ in range(9000)), encoding="utf-8")
    assert cli("train", "text.txt", "--name", "new", *tiny.training(4, 2)).code == 0
    assert cli("runs", "diagnose", "new", "--json").json == {"run": "new", "healthy": True, "findings": []}
    assert "too few" in cli("runs", "diagnose", "new").out


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_commands_of_every_finding_work_as_typed(cli, home: Path, text: str, arch: str) -> None:
    (home / "text.txt").write_text(text, encoding="utf-8")
    flags = tiny.training(2, 1) if arch != "bigram" else ["--block-size", "8", "--max-steps", "2", "--eval-every", "1", *tiny.DETERMINED]
    assert cli("train", "text.txt", "--name", "own", *flags, *ARCHITECTURES[arch]).code == 0
    seen = set()
    for finding in RULES:
        for command in commands_for(finding, Run(home / "runs" / "own")):
            words = shlex.split(command)
            assert words[0] == "minigpt"
            if words[1] == "train":
                words.append("--print-config")
            if command not in seen:
                seen.add(command)
                done = cli(*words[1:])
                assert done.code == 0, (command, done.err)


@pytest.mark.parametrize(("block_size", "change"), [(8, "--block-size 128"), (128, "--max-steps 8")])
def test_where_context_is_unused_a_wide_window_is_trained_longer(block_size: int, change: str, cli, home: Path) -> None:
    Path("text.txt").write_text("once upon a time there was a text. " * 200)
    flags = [*tiny.training(2, 1), "--block-size", str(block_size)]
    assert cli("train", "text.txt", "--name", "own", *flags).code == 0
    assert commands_for("context unused", Run(home / "runs" / "own"))[0].endswith(change)


def test_a_sure_finding_is_one_line_at_the_end_of_a_training(cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(trained / "runs" / "first")
    for right, line in ((9, "leak: all of it: minigpt runs diagnose first"), (7, "")):
        monkeypatch.setattr("minigpt_cli.evaluation.diagnosis.diagnose", lambda shown, r=right: [Finding("leak", "all of it", r, 9)])
        assert sure_finding(run) == line
    monkeypatch.setattr("minigpt_cli.commands.train.sure_finding", lambda run: "leak: all of it")
    out = cli("train", "text.txt", *tiny.training(2, 1)).out
    assert out.count("leak: all of it") == 1
    assert "found   leak: all of it\nnext " in out


def test_diagnosing_imports_no_torch(trained: Path) -> None:
    code = "import sys; from minigpt_cli.cli import run; run(['runs', 'diagnose']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=trained, capture_output=True, check=False).returncode == 0
