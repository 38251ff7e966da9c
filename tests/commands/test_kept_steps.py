"""--keep-every, and --checkpoint STEP or RUN@STEP wherever a checkpoint is read."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minigpt_cli import Run, compare
from minigpt_cli.commands.options import complete_run
from minigpt_cli.commands.serve import build_app
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.runstore.weights import kept_steps


@pytest.fixture
def kept(trained: Path, cli: Any, tiny: list[str]) -> Path:
    """The working folder with a run `bard` that keeps steps 2 and 4, and a run `first` that keeps none."""
    if not (saved := trained.parent.parent / "bard").is_dir():
        assert cli("train", "text.txt", "--name", "bard", *tiny, "--ema", "0.5", "--keep-every", "2").code == 0
        shutil.copytree("runs/bard", saved)
    shutil.copytree(saved, "runs/bard", dirs_exist_ok=True)
    return trained


def test_a_flag_a_reference_and_a_path_mean_the_same_weights(kept: Path, cli: Any) -> None:
    shown = {}
    for step in ("2", "4", "last", "best"):
        ways = (["bard", "--checkpoint", step], ["bard", "--ckpt", step], [f"bard@{step}"])
        documents = [cli("eval", *way, "--json").json for way in ways]
        assert [document["ckpt"] for document in documents] == [step] * 3
        shown[step] = {(document["step"], document["nats_per_char"]) for document in documents}
        assert len(shown[step]) == 1
    assert shown["2"] != shown["4"]
    assert shown["4"] == shown["best"]  # the last evaluation was the best
    assert cli("eval", "runs/bard/step-000002.safetensors", "--nats-per-char").out.strip() == f"{next(iter(shown['2']))[1]:.6f}"
    assert "checkpoint of step 2" in cli("eval", "bard@2").out


def test_every_command_that_reads_a_checkpoint_takes_a_step(kept: Path, cli: Any) -> None:
    assert ", step 2," in cli("generate", "bard@2", "--max-new-tokens", "2").err
    assert "checkpoint of step 2" in cli("runs", "look", "bard@2").out
    assert cli("runs", "export", "bard", "--checkpoint", "2", "--out", "hf", "--json").json["step"] == 2
    done = cli("train", "text.txt", "--init-from", "bard@2", "--name", "next", "--max-steps", "2", "--eval-every", "2")
    assert done.code == 0, done.err
    next_record, record = (RunStore("runs").find(name).record for name in ("next", "bard"))
    assert next_record.base.sha256 == record.kept["step-000002.safetensors"].sha256
    for wrong in (
        ["eval", "bard@3"],
        ["generate", "bard", "--checkpoint", "3"],
        ["runs", "look", "first@3"],
        ["train", "--resume", "bard@2"],
    ):
        done = cli(*wrong)
        assert (done.code, done.err.splitlines()[-1].startswith("Error: ")) == (2, True), done.err
        assert ("2, 4" in done.err) == ("bard" in wrong[1] and "--resume" not in wrong)


def test_two_steps_of_one_run_are_compared(kept: Path, cli: Any) -> None:
    document = cli("compare", "bard@2", "bard@4", "first", "--prompt", "To be", "--json").json
    assert [run["run"] for run in document["runs"]] == ["bard@2", "bard@4", "first"]
    assert document["pairs"][0]["delta_nats_per_char"] > 0  # it has learned
    assert [sample["run"] for sample in document["samples"]] == ["bard@2", "bard@4", "first"]
    assert [run["tokens_seen"] for run in document["runs"]] == [64, 128, 128]  # until that step
    assert 0 < document["runs"][0]["elapsed_s"] < document["runs"][1]["elapsed_s"]
    chart = cli("compare", "bard@2", "bard@4", "first").out.partition("against steps")[2].partition("verdict")[0]
    assert ("bard" in chart, "bard@" in chart) == (True, False)  # it has one curve
    assert cli("compare", "bard@2", "bard@2").code == 2
    assert compare(Run("bard@2"), "bard@4").pairs[0]["delta_nats_per_char"] == document["pairs"][0]["delta_nats_per_char"]


def test_a_run_says_which_steps_it_keeps(kept: Path, cli: Any) -> None:
    assert "the weights of steps 2, 4: " in cli("runs", "show", "bard").out
    assert list(cli("runs", "show", "bard", "--json").json["record"]["kept"]) == ["step-000002.safetensors", "step-000004.safetensors"]
    run = Run("bard")
    assert run.kept_steps == [2, 4]
    assert run.generate("To", max_new_tokens=5, seed=1, ckpt="2") == Run("bard@2").generate("To", max_new_tokens=5, seed=1)

    context: Any = SimpleNamespace(params={"runs_dir": None})
    assert [name for name, _ in complete_run(context, "bard@")] == ["bard@best", "bard@last", "bard@2", "bard@4"]


def test_adapters_are_kept_without_their_base_and_may_begin_from_a_kept_step(kept: Path, cli: Any) -> None:
    steps = ["--max-steps", "4", "--eval-every", "2", "--batch-size", "4", "--keep-every", "2"]
    done = cli("train", "text.txt", "--name", "fine", "--init-from", "bard@2", "--lora-rank", "2", *steps)
    assert done.code == 0, done.err
    record = RunStore("runs").find("fine").record
    assert kept_steps(record) == [2, 4]
    assert record.kept["step-000002.safetensors"].bytes == record.files["best.safetensors"].bytes
    assert cli("eval", "fine@2", "--nats-per-char").code == 0
    assert cli("runs", "verify", "fine").code == 0
    assert cli("runs", "import", "fine@4", "--name", "merged").code == 0
    assert RunStore("runs").find("merged").record.kept == {}


def test_the_server_writes_with_a_kept_step(kept: Path) -> None:
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    for only, wanted in ((None, {"bard@2": 200, "bard": 200, "bard@3": 404}), ("bard", {"bard@2": 200, "first@2": 404, "first": 404})):
        app = build_app(RunStore("runs"), api_key=None, engine="torch", only=only, ckpt="best", local_only=True)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            for model, code in wanted.items():
                answer = client.post("/v1/completions", json={"model": model, "prompt": "To", "max_tokens": 1})
                assert (model, answer.status_code) == (model, code), answer.text


def test_prune_says_asks_and_removes(kept: Path, cli: Any) -> None:
    folder = Path("runs/bard")
    assert "say which" in cli("runs", "prune", "bard").err
    for flags in (["--keep", "1", "--every", "2"], ["--keep", "-1"], ["--every", "0"], ["--keep", "1"]):
        assert cli("runs", "prune", "bard", *flags).code == 2  # the last one needs --yes
    assert "full name" in cli("runs", "prune", "bar", "--keep", "1", "--yes").err
    assert "one checkpoint" in cli("runs", "prune", "bard@2", "--keep", "1", "--yes").err
    done = cli("runs", "prune", "*", "--keep", "1", "--dry-run")
    assert "bard: would remove steps 2 (" in done.err
    assert "first: nothing to remove" in done.err
    assert len(list(folder.glob("step-*"))) == 2
    (folder / "step-000099.safetensors").write_bytes(b"of a killed process")
    with RunStore("runs").lock(RunStore("runs").find("bard")):
        assert "being trained" in cli("runs", "prune", "bard", "--keep", "1", "--yes").err
    done = cli("runs", "prune", "bard", "--every", "4", "--yes")
    assert "removes steps 2 and 1 that the record does not name (" in done.err
    assert "; 1 of 2 stay" in done.err
    assert [path.name for path in folder.glob("step-*")] == ["step-000004.safetensors"]
    assert cli("runs", "verify", "bard").code == 0
    assert cli("train", "--resume", "bard", "--max-steps", "6").code == 0
    assert kept_steps(RunStore("runs").find("bard").record) == [4, 6]


@pytest.mark.parametrize(
    "flags", [["--max-steps", "40"], ["--max-steps", "40", "--patience", "3"], ["--time-budget", "2s", "--arch", "classic"]]
)
def test_a_dry_run_says_what_would_be_kept(flags: list[str], trained: Path, cli: Any, tiny: list[str]) -> None:
    sizes = [word for pair in zip(tiny[::2], tiny[1::2], strict=True) for word in pair if pair[0] not in ("--max-steps", "--arch")]
    err = cli("train", "text.txt", *sizes, *flags, "--keep-every", "10", "--dry-run").err
    said = next(line for line in err.splitlines() if line.startswith("keeps "))
    expected = {"--patience": "keeps up to 4 checkpoints of ", "--time-budget": "keeps about "}
    assert said.startswith(next((text for flag, text in expected.items() if flag in flags), "keeps 4 checkpoints of "))
    assert said.endswith("as many as fit the time budget") == ("--time-budget" in flags)


def test_a_record_without_the_field_opens_as_before(kept: Path, cli: Any) -> None:
    path = Path("runs/first/run.json")
    content = json.loads(path.read_text("utf-8"))
    del content["kept"], content["checksum"]
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    path.write_text(json.dumps({**content, "checksum": hashlib.sha256(canonical.encode()).hexdigest()}), "utf-8")
    assert cli("runs", "verify", "first").code == 0
    assert cli("train", "--resume", "first", "--max-steps", "6", "--keep-every", "3").code == 0
    assert kept_steps(RunStore("runs").find("first").record) == [6]
    assert cli("runs", "rename", "first", "second").code == 0
    assert cli("eval", "second@6", "--nats-per-char").code == 0


def test_two_different_checkpoints_in_one_command_are_refused(kept: Path, cli: Any) -> None:
    for command in (
        ["eval", "bard@2", "--checkpoint", "4"],
        ["eval", "runs/bard/step-000002.safetensors", "--checkpoint", "best"],
        ["eval", "runs/bard/best.safetensors@2"],
        ["generate", "bard@2", "--checkpoint", "last"],
        ["generate", "bard@2", "--checkpoint", "last", "--serve"],
        ["compare", "first", "bard@2", "--checkpoint", "last"],
        ["runs", "look", "bard@2", "--checkpoint", "best"],
        ["runs", "export", "bard@2", "--checkpoint", "best", "--out", "hf"],
    ):
        done = cli(*command)
        assert (done.code, done.out) == (2, ""), done.out
        assert "two checkpoints" in done.err.splitlines()[-1]
    with pytest.raises(UsageError, match="two checkpoints"):
        Run("bard@2").generate("To", ckpt="best")
    assert cli("eval", "bard@2", "--checkpoint", "02", "--nats-per-char").code == 0


def test_the_next_run_of_a_loop_is_not_read_at_the_step_of_the_first(kept: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/run first\n"))
    done = cli("generate", "bard@2", "-i", "--max-new-tokens", "2")
    assert (done.code, "first, step 4" in done.err) == (0, True), done.err


def test_keep_every_above_the_number_of_steps_is_a_warning(kept: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", "--name", "none", *tiny, "--keep-every", "5")
    assert (done.code, "no checkpoint is kept" in done.err) == (0, True), done.err
