"""minigpt train, end to end on a tiny model: events, records, resume, signals, beginnings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization import bpe

_reads: list[Counter[str]] = []  # of the test that counts now


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if _reads and event == "open" and isinstance(arguments[0], str | Path) and not (arguments[2] or 0) & os.O_ACCMODE:
        _reads[-1][Path(arguments[0]).name] += 1


@pytest.fixture
def reads() -> Iterator[Counter[str]]:
    """How often each file is opened to be read, by its name."""
    if not hasattr(_count, "installed"):
        sys.addaudithook(_count)  # for as long as the process lives
        _count.installed = True  # type: ignore[attr-defined]
    _reads.append(Counter())
    yield _reads[-1]
    _reads.clear()


def test_training_leaves_a_whole_run_and_says_what_comes_next(trained: Path, cli: Any, tiny: list[str]) -> None:
    run = RunStore("runs").find("first")
    record = run.record
    assert (record.status, record.stop_reason, record.stop_step) == ("finished", "max_steps", 4)
    assert record.argv[0] == "minigpt"
    assert record.best is not None
    assert record.best.whole_split
    assert record.best.ci95 is not None
    assert {"run.json", "config.json", "tokenizer.json", "metrics.jsonl", "best.safetensors", "last.safetensors", "resume.safetensors"} <= {
        path.name for path in run.dir.iterdir()
    }
    done = cli("train", "text.txt", *tiny)
    assert done.code == 0
    assert "nats per character" in done.out
    assert "minigpt generate modern-1" in done.out
    assert done.err.count("\nstep ") == 2


def test_json_is_one_event_a_line_and_nothing_else(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", "--json", *tiny)
    events = done.events
    assert [event["event"] for event in events if event["event"] != "saved"] == ["started", "evaluated", "evaluated", "stopped"]
    assert all(next(iter(event)) == "event" and event["run"] == "modern-1" and isinstance(event["step"], int) for event in events)
    evaluated = events[-2] if events[-2]["event"] == "evaluated" else next(e for e in events if e["event"] == "evaluated")
    assert {"train_loss", "val_loss", "nats_per_char", "lr", "tokens_seen", "tokens_per_s", "elapsed_s"} <= evaluated.keys()
    assert {"stop_reason", "best_step", "best_val_loss", "best_nats_per_char"} <= events[-1].keys()


def test_metrics_hold_the_very_events_of_the_screen(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", "--json", "--name", "second", *tiny)
    shown = [event for event in done.events if event["event"] == "evaluated"]
    stored = [json.loads(line) for line in Path("runs/second/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert shown == stored


def test_data_and_save_are_read_and_hashed_once(trained: Path, cli: Any, tiny: list[str], reads: Counter[str]) -> None:
    data, save = ("text.txt", "dataset.json", "train.bin", "val.bin"), ("last.safetensors", "resume.safetensors")
    for command, once in (
        (["text.txt", "--name", "fresh", *tiny], data),
        (["--resume", "first", "--max-steps", "6"], (*data, *save)),
        (["text.txt", "--name", "many", "--seeds", "2", *tiny], data),
    ):
        for path in (Path("text.txt"), *Path(RunStore("runs").find("first").record.corpus.dataset_dir).iterdir()):  # type: ignore[union-attr]
            os.utime(path)  # what has not changed for two seconds need not be read again
        reads.clear()
        assert cli("train", *command, "--json").code == 0
        # the text is opened a second time for its first bytes, which tell what kind of file it is
        assert {name: reads[name] - (name == "text.txt") for name in once} == dict.fromkeys(once, 1)


def test_resume_goes_on_and_refuses_what_would_make_another_run(trained: Path, cli: Any) -> None:
    done = cli("train", "--resume", "first", "--max-steps", "6", "--json")
    events = done.events
    assert done.code == 0
    assert [event["step"] for event in events if event["event"] in ("resumed", "stopped")] == [4, 6]
    for flags, named in [(["--lr", "1e-5"], "--lr"), (["--seed", "2"], "--seed"), (["--max-steps", "1"], "--max-steps")]:
        refused = cli("train", "--resume", "first", *flags)
        assert (refused.code, refused.out, refused.err.count("Error: ")) == (2, "", 1)
        assert named in refused.err
    assert cli("train", "text.txt", "--resume", "first").code == 2
    assert cli("train", "--resume", "first", "--arch", "moe").code == 2
    for flags in (["--seeds", "2"], ["--sweep", "lr=1"], ["--dry-run"], ["--name", "x"]):
        assert flags[0] in cli("train", "--resume", "first", *flags).err
    assert RunStore("runs").find("first").status == "finished"


def test_a_run_goes_on_with_the_tokens_that_it_began_with_or_not_at_all(
    trained: Path, cli: Any, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (trained / "text.txt").read_text(encoding="utf-8")
    (trained / "long.txt").write_text("".join(f"{text} a{i} " for i in range(4)), encoding="utf-8")
    begin = ["train", "long.txt", "--name", "pairs", "--tokenizer", "bpe", "--vocab-size", "300", *tiny]
    assert cli(*begin).code == 0
    run = RunStore("runs").find("pairs")
    monkeypatch.setattr(bpe, "_sample", lambda text, limit: iter(["another text altogether " * 90]))
    monkeypatch.setattr(bpe.BPETokenizer, "edition", 3)
    assert cli("train", "--resume", "pairs", "--max-steps", "6").code == 0  # the old tokens are still in the data folder
    assert run.refresh().record.stop_step == 6
    shutil.rmtree(run.record.corpus.dataset_dir)  # type: ignore[union-attr]
    refused = cli("train", "--resume", "pairs", "--max-steps", "8")
    assert refused.code == 2
    assert "into other tokens than 'pairs' began with" in refused.err.splitlines()[-1]
    refused = cli("eval", "pairs", "--fresh")
    assert refused.code == 2
    assert "into other tokens than in training" in refused.err.splitlines()[-1]
    assert cli("eval", "pairs", "--data", "long.txt").code == 0


def test_a_run_that_was_extended_is_seen_wherever_settings_are_compared(trained: Path, cli: Any) -> None:
    config = Path("runs/first/config.json").read_text(encoding="utf-8")
    (trained / "six.json").write_text(config.replace('"max_steps": 4', '"max_steps": 6'), encoding="utf-8")
    assert cli("train", "--config", "six.json", "--name", "straight").code == 0
    done = cli("train", "--resume", "first", "--max-steps", "6", "--eval-every", "3")
    assert done.code == 0
    said = done.err + done.out
    assert "the learning rate goes from" in said
    assert "to the schedule of 6 steps over 10 steps" in said
    assert "eval_every was 2 and is now 3" in said
    changes = "4:max_steps=4 4:eval_every=2"
    assert cli("runs", "diff", "first", "straight", "--json").json["differences"]["resume_changes"] == [changes, ""]
    assert cli("compare", "first", "straight", "--json").json["differences"]["resume_changes"] == [changes, ""]
    assert cli("runs", "show", "first", "--json").json["config"]["resume_changes"] == changes
    for command in (["runs", "diff", "first", "straight"], ["runs", "show", "first"]):
        assert "max_steps was 4 until step 4; eval_every was 2 until step 4" in " ".join(cli(*command).out.split())
    done = cli("compare", "first", "straight", "--group-by", "config", "--json")
    assert done.code == 0  # two recipes


def test_resume_refuses_a_changed_text(trained: Path, cli: Any, text: str) -> None:
    (trained / "text.txt").write_text(text + "More.", encoding="utf-8")
    done = cli("train", "--resume", "first", "--max-steps", "6")
    assert done.code == 2
    assert "has changed" in done.err


def test_resume_finds_the_tokens_of_a_missing_validation_text(trained: Path, cli: Any, text: str, tiny: list[str]) -> None:
    (trained / "held.txt").write_text(text[:500])
    assert cli("train", "text.txt", "--val", "held.txt", "--name", "held", *tiny).code == 0
    (trained / "held.txt").unlink()
    assert cli("train", "--resume", "held", "--max-steps", "5", "--json").code == 0


def test_resume_finds_the_tokens_of_a_missing_text(trained: Path, cli: Any) -> None:
    (trained / "text.txt").unlink()
    assert cli("train", "--resume", "first", "--max-steps", "5", "--json").code == 0
    shutil.rmtree("data")
    done = cli("train", "--resume", "first", "--max-steps", "6")
    assert (done.code, done.err.count("Error: ")) == (2, 1)
    assert "is missing" in done.err


def test_same_seed_same_weights(trained: Path, cli: Any, tiny: list[str]) -> None:
    cli("train", "text.txt", "--name", "again", *tiny)
    assert Path("runs/again/last.safetensors").read_bytes() == Path("runs/first/last.safetensors").read_bytes()


def test_name_that_exists_is_refused_before_anything_is_read(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", "--name", "first", *tiny)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "exists already" in done.err


def test_starting_with_the_weights_of_a_run_takes_its_sizes(trained: Path, cli: Any) -> None:
    done = cli("train", "text.txt", "--init-from", "first", "--max-steps", "1", "--device", "cpu", "--name", "next", "--precision", "fp32")
    assert done.code == 0, done.err
    run = RunStore("runs").find("next")
    assert run.config.model == RunStore("runs").find("first").config.model
    assert run.record.base is not None
    assert run.record.base.run == "first"
    assert cli("train", "text.txt", "--init-from", "first", "--n-embd", "16").code == 2
    assert cli("train", "text.txt", "--lora-rank", "2").code == 2


def test_dry_run_says_the_cost_and_keeps_nothing(trained: Path, cli: Any, tiny: list[str]) -> None:
    before = sorted(os.listdir("runs"))
    plan = cli("train", "text.txt", "--dry-run", "--json", *tiny).json
    assert {"n_params", "n_active_params", "step_ms", "tokens_per_s", "peak_bytes", "largest_batch", "epochs", "estimated_s"} <= plan.keys()
    assert sorted(os.listdir("runs")) == before


def test_print_config_shows_value_and_source(cli: Any) -> None:
    done = cli("train", "--preset", "p1_base", "--lr", "1e-3", "--print-config")
    lines = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.startswith("  ")}
    assert lines["lr"] == ["0.001", "--lr"]
    assert lines["patience"] == ["8", "preset", "p1_base"]
    assert lines["beta1"] == ["0.9", "default"]
    document = cli("train", "--preset", "p1_base", "--print-config", "--json").json
    assert document["config"]["eval"]["patience"] == 8
    assert document["sources"]["patience"] == "preset p1_base"


@pytest.fixture
def start(trained: Path, tiny: list[str]) -> Callable[..., subprocess.Popen[str]]:
    """Begin a training in another process; it has saved once when this returns."""

    def begin(name: str) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "minigpt_cli", "train", "text.txt", "--json", *tiny, "--max-steps", "1000000", "--name", name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "saved":
                return process
        raise AssertionError(process.communicate()[1])

    return begin


@pytest.mark.parametrize(("number", "code", "reason"), [(signal.SIGINT, 130, "interrupted_keyboard"), (signal.SIGTERM, 143, "terminated")])
def test_signal_finishes_the_step_saves_and_says_so(number: int, code: int, reason: str, trained: Path, start: Any) -> None:
    process = start("long")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["stop_reason"]) == ("stopped", reason)
    run = RunStore("runs").find("long")
    assert (run.status, run.record.stop_reason, run.record.stop_step) == ("interrupted", reason, last["step"])
    assert "Traceback" not in err


def test_a_closed_terminal_saves_unless_nohup_ignores_it(start: Any) -> None:
    process = start("lost")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert RunStore("runs").find("lost").record.stop_reason == "terminated"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # children inherit it, as from nohup
    try:
        process = start("kept")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.terminate()
    process.communicate(timeout=60)


def test_a_closed_pipe_stops_and_saves_the_run_quietly(trained: Path, start: Any) -> None:
    process = start("unread")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
    assert RunStore("runs").find("unread").status == "interrupted"


def test_killed_run_shows_as_crashed_and_resumes(trained: Path, start: Any, cli: Any) -> None:
    process = start("killed")
    process.kill()
    process.communicate()
    assert cli("runs", "list", "--where", "run=killed", "--json").json[0]["status"] == "crashed"
    step = Run(Path("runs/killed")).record.stop_step
    done = cli("train", "--resume", "killed", "--max-steps", str(step + 1), "--json")
    assert done.code == 0, done.err
    assert cli("runs", "show", "killed", "--json").json["record"]["status"] == "finished"


def test_live_run_is_neither_removed_nor_trained_twice(trained: Path, start: Any, cli: Any) -> None:
    process = start("busy")
    try:
        assert cli("runs", "list", "--where", "run=busy", "--json").json[0]["status"] == "running"
        for arguments in (["runs", "rm", "busy", "--yes"], ["train", "--resume", "busy"], ["runs", "rename", "busy", "other"]):
            refused = cli(*arguments)
            assert refused.code == 1
            assert "another process" in refused.err
    finally:
        process.terminate()
        process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while cli("runs", "rm", "busy", "--yes").code and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path("runs/busy").exists()


def test_log_writes_the_same_numbers_for_tensorboard(trained: Path, cli: Any, tiny: list[str]) -> None:
    pytest.importorskip("tensorboard")
    done = cli("train", "text.txt", "--log", "tensorboard", "--name", "logged", *tiny)
    assert done.code == 0, done.err
    assert list(Path("runs/logged/tensorboard").glob("events.*"))
    refused = cli("train", "text.txt", "--log", "tensorbord", *tiny)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "did you mean 'tensorboard'" in refused.err


@pytest.mark.parametrize(
    ("flags", "code", "hint"),
    [
        ("--block-size 100000", 2, "cannot fill block_size 100000"),
        ("--n-embd 65536 --n-head 1024 --n-layer 1024", 1, "does not fit in cpu memory"),
        ("--batch-size 1048576 --block-size 64", 1, "--batch-size 1048576 does not fit in cpu memory: about --batch-size"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_run(
    flags: str, code: int, hint: str, trained: Path, cli: Any, tiny: list[str]
) -> None:
    done = cli("train", "text.txt", *tiny, *flags.split(), "--name", "never")
    errors = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert (done.code, len(errors)) == (code, 1), done.err
    assert hint in errors[0]
    assert not Path("runs/never").exists()


def test_validation_text_that_stands_in_the_training_text_is_warned_of_and_recorded(cli: Any, tiny: list[str]) -> None:
    Path("known.txt").write_text("the same line again and again, with no end to it at all.\n" * 60)
    done = cli("train", "known.txt", "--name", "known", *tiny)
    assert "Warning: 100.0% of the validation text stands word for word in the training text" in done.err
    corpus = json.loads(Path("runs/known/run.json").read_text())["corpus"]
    assert "100.0% of the validation text stands" in cli("runs", "show", "known").out.replace("\n", " ")
    assert corpus["leak"] == {"share": 1.0, "n_chars": corpus["splits"]["val"]["n_chars"], "of_val": 1.0, "of_train": 1.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["notess.txt"], "no file or folder notess.txt"),
        (["text.txt", "--tokenizer", "bep"], "unknown tokenizer 'bep': did you mean 'bpe'"),
        (["text.txt", "--tokenizer", "gone/tokenizer.json"], "no tokenizer file gone/tokenizer.json"),
        (["text.txt", "--tokenizer", "a" * 300], "unknown tokenizer 'aaa"),
        (["text.txt", "--experiment", "context", "--tokenizer", "bep"], "unknown tokenizer 'bep': did you mean 'bpe'"),
    ],
)
def test_what_is_not_there_is_said_before_torch_is_loaded(arguments: list[str], said: str, home: Path) -> None:
    words = ["train", *arguments]
    program = f"import sys; from minigpt_cli.cli import run; code = run({words}); sys.exit(9 if 'torch' in sys.modules else code)"
    Path("text.txt").write_text("some words, and some more of them.\n" * 100)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
