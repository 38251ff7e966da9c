"""The Python interface: it does what the commands do, and the page about it is true."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness import tiny

from minigpt_cli import MiniGPTError, Run, cli, compare, leaderboard, train
from minigpt_cli.events import Evaluated, Stopped

PAGE = Path(__file__).parents[1] / "minigpt_cli" / "docs" / "python.md"
SIZES = {
    "arch": "modern", "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 4, "max_steps": 4, "eval_every": 2,
    "device": "cpu", "precision": "fp32", "attention": "plain", "compile": "off", "threads": 1, "quiet": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "text.txt").write_text(tiny.text())
    return tmp_path


def test_a_run_made_here_is_the_run_that_the_command_makes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "text.txt", "--name", "typed", *tiny.training(4, 2)]) == 0
    capfd.readouterr()
    run = train("text.txt", name="called", **SIZES)
    assert capfd.readouterr() == ("", "")
    assert (run.dir / "best.safetensors").read_bytes() == (folder / "runs" / "typed" / "best.safetensors").read_bytes()
    assert run.config == Run("typed").config
    assert [row["step"] for row in run.metrics] == [2, 4]


def test_events_are_read_one_by_one_and_a_run_is_left_as_of_its_last_save() -> None:
    training = train("text.txt", name="whole", stream=True, **SIZES)
    events = list(training)
    assert [event.step for event in events if isinstance(event, Evaluated)] == [2, 4]
    assert isinstance(events[-1], Stopped)
    assert training.run is not None
    assert training.run.status == "finished"
    left = train("text.txt", name="left", stream=True, **SIZES)
    for event in left:
        if event.event == "saved":
            break
    left.close()
    assert (Run("left").status, Run("left").record.stop_step) == ("interrupted", 2)
    resumed = train(resume="left", quiet=True)
    assert (resumed.dir / "last.safetensors").read_bytes() == (training.run.dir / "last.safetensors").read_bytes()


def test_an_interrupted_training_is_saved_and_says_how_to_go_on(folder: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(1.5, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt, match=r"is saved: train\(resume='endless'\)"):
        train("text.txt", name="endless", **{**SIZES, "max_steps": 10**7, "eval_every": 10**6, "eval_iters": 1})
    assert signal.getsignal(signal.SIGINT) is before
    assert Run("endless").status == "interrupted"


def test_text_is_the_text_of_the_command_and_streams_in_pieces(capfd: pytest.CaptureFixture[str]) -> None:
    run = train("text.txt", name="writer", **SIZES)
    text = run.generate("abc", max_new_tokens=30, seed=3, temperature=0.7, top_k=5)
    pieces = list(run.generate("abc", max_new_tokens=30, seed=3, temperature=0.7, top_k=5, stream=True))
    assert len(pieces) == 30
    assert "".join(pieces) == text
    assert (
        cli.run(["generate", "writer", "-p", "abc", "--max-new-tokens", "30", "--seed", "3", "--temperature", "0.7", "--top-k", "5"]) == 0
    )
    assert capfd.readouterr().out == f"abc{text}\n"
    with pytest.raises(MiniGPTError, match="does not know 'Z'"):
        run.generate("Z", stream=True)


def test_scores_verdicts_and_tables_are_those_of_the_commands() -> None:
    one = train("text.txt", name="one", **SIZES)
    train("text.txt", name="two", **{**SIZES, "n_embd": 16})
    score = one.score("abcabc")
    assert float(score) == pytest.approx(score.nats.mean())
    assert len(score.nats) == len(score.text) == 6
    assert one.score().nats_per_char == one.nats_per_char
    verdict = compare(one, "two")
    assert [pair["verdict"] for pair in verdict.pairs] == ["indistinguishable"] or " is better than " in repr(verdict)
    assert verdict.differences["n_embd"] == [8, 16]
    table = leaderboard()
    assert [row["rank"] for row in table] == [1, 2]
    assert [row["run"] for row in leaderboard(where="n_embd=16")] == ["two"]
    for shown in (one, score, verdict, table, one.metrics):
        assert shown._repr_html_().count("<") > 5


def test_html_escapes_what_a_text_holds(folder: Path) -> None:
    (folder / "text.txt").write_text("<script>a</script> & b " * 100)
    score = train("text.txt", name="tags", **SIZES).score("<script>")
    assert "<script" not in score._repr_html_()
    assert score._repr_html_().count("&lt;") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train("missing.txt"), "no file or folder missing.txt"),
        (lambda: train("text.txt", n_layr=2), "unknown setting 'n_layr'"),
        (lambda: train("text.txt", n_layer=0), "--n-layer 0"),
        (lambda: train("text.txt", resume="x"), "leave out source"),
        (lambda: Run("x"), "no runs in"),
        (lambda: compare("x", "y"), "no runs in"),
        (lambda: leaderboard(budget="apples"), "--budget apples"),
    ],
)
def test_errors_say_what_to_do_in_one_line(call, message: str, folder: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MiniGPTError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert not (folder / "runs").exists()


def test_nothing_heavy_is_loaded_before_it_is_used() -> None:
    heavy = "{'torch', 'tokenizers', 'rich', 'matplotlib', 'numpy', 'pydantic'}"
    code = f"import sys, minigpt_cli; assert not {heavy} & set(sys.modules); "
    code += "from minigpt_cli import Run, train, compare, leaderboard; list(leaderboard()); "
    code += "assert not {'torch', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_examples_of_the_page_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name, value in SIZES.items():
        if name not in ("arch", "quiet"):
            monkeypatch.setenv(f"MINIGPT_{name.upper()}", str(value))
    (folder / "notes.txt").write_text("Once upon a time days to be, or not.\n" * 80)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) >= 7
    assert "known: notes-classic, notes-moe" in capfd.readouterr().out
