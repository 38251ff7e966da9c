"""minigpt eval: every number, every split, kept scores, and what it refuses."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from minigpt_cli.runstore.directory import Run

KEYS = {
    "run", "ckpt", "step", "split", "text_sha256", "nats_per_token", "nats_per_char", "bits_per_byte", "perplexity", "n_tokens", "n_chars",
    "n_bytes", "ci95", "baselines",
}  # fmt: skip


def test_json_is_what_cli_md_promises(cli, trained: Path) -> None:
    done = cli("eval", "first", "--json")
    document = done.json
    assert done.code == 0
    assert document.keys() >= KEYS
    assert document["nats_per_char"] == pytest.approx(Run(trained / "runs" / "first").record.best.nats_per_char, rel=1e-9)
    assert document["bits_per_byte"] == pytest.approx(document["nats_per_char"] / math.log(2))
    assert document["perplexity"] == pytest.approx(math.exp(document["nats_per_token"]))
    low, high = document["ci95"]["nats_per_char"]
    assert low < document["nats_per_char"] < high
    assert document["baselines"].keys() >= {"unigram", "bigram", "xz"}
    assert document["text_sha256"] == Run(trained / "runs" / "first").record.corpus.splits["val"].sha256


@pytest.mark.parametrize("flag", ["--nats-per-char", "--nats-per-token", "--bits-per-byte", "--perplexity"])
def test_one_number_alone(cli, trained: Path, flag: str) -> None:
    document = cli("eval", "--json").json
    done = cli("eval", flag)
    assert float(done.out) == pytest.approx(document[flag[2:].replace("-", "_")], abs=1e-6)
    assert len(done.out.split()) == 1


def test_a_score_computed_again_is_the_kept_one(cli, trained: Path) -> None:
    kept, fresh = cli("eval", "--json").json, cli("eval", "--json", "--fresh").json
    assert kept == fresh


@pytest.mark.parametrize("arguments", [["--split", "train"], ["--ckpt", "last"], ["--stride", "3"], ["--data", "other.txt"]])
def test_other_texts_weights_and_windows(cli, trained: Path, arguments: list[str]) -> None:
    (trained / "other.txt").write_text("to suffer the question:\n" * 9, encoding="utf-8")
    done = cli("eval", "first", "--json", *arguments)
    assert done.code == 0
    assert done.json["n_chars"] == {"--data": 216, "--split": 4590}.get(arguments[0], 510)
    assert cli("eval", "first", *arguments).code == 0


def test_longer_context_helps_or_at_least_changes(cli, trained: Path) -> None:
    assert cli("eval", "--json", "--stride", "1").json["nats_per_char"] != cli("eval", "--json").json["nats_per_char"]


def test_the_test_split_shows_its_gap(cli, home: Path, text: str, tiny: list[str]) -> None:
    (home / "text.txt").write_text(text, encoding="utf-8")
    assert cli("train", "text.txt", "--test-frac", "0.2", "--train-frac", "0.6", *tiny).code == 0
    document = cli("eval", "--split", "test", "--json").json
    assert document["gap_to_selected"] == pytest.approx(document["nats_per_char"] - document["selected_val_nats_per_char"])
    assert "gap" in cli("eval", "--split", "test").out


def test_a_split_from_another_source_has_the_name_of_that_source(cli, home: Path, text: str, tiny: list[str]) -> None:
    for name in ("text.txt", "held.txt", "last.txt"):
        (home / name).write_text(text, encoding="utf-8")
    done = cli("train", "text.txt", "--val", "held.txt", "--test", "last.txt", *tiny)
    assert " 0 tokens/s" not in done.err  # however short the training was
    assert "validation text held.txt" in cli("eval").out
    assert "test text last.txt" in cli("eval", "--split", "test").out
    assert "training split of text.txt" in cli("eval", "--split", "train").out
    titles = cli("runs", "leaderboard", "--csv").out
    assert f"held.txt, {len(text):,} characters of validation" in titles
    resumed = cli("train", "--resume", "latest", "--val", "last.txt")
    assert "--val cannot change when resuming (it was 'held.txt')" in resumed.err


def test_token_files_are_scored_as_their_text(cli, trained: Path, tiny: list[str]) -> None:
    (trained / "other.txt").write_text("to suffer the question:\n" * 9, encoding="utf-8")
    assert cli("train", "text.txt", "--tokenizer", "byte", "--name", "bytes", *tiny).code == 0
    for tokenizer in ("char", "bpe"):
        assert cli("tokenize", "other.txt", "--tokenizer", tokenizer, "--out", f"by-{tokenizer}").code == 0
    for run in ("first", "bytes"):
        expected = cli("eval", run, "--data", "other.txt", "--json").json
        for folder in ("by-char", "by-bpe"):
            done = cli("eval", run, "--data", folder, "--json")
            assert done.json == expected
            assert f"{folder} holds token files: their whole text is read, train 194 and val 22 characters" in done.err
    found = cli("compare", "first", "bytes", "--data", "by-bpe", "--json").json
    assert found["text_sha256"] == cli("compare", "first", "bytes", "--data", "other.txt", "--json").json["text_sha256"]


def test_a_run_or_a_model_is_no_text(cli, trained: Path) -> None:
    assert cli("runs", "export", "first", "--format", "hf", "--out", "model").code == 0
    (trained / "model" / "README.md").write_text("A model of this and that. " * 99)
    for command in (["train"], ["tokenize"], ["eval", "--data"], ["train", "text.txt", "--val"]):
        for source, what in (
            ("runs/first", "a run, not a text: train it further with --resume runs/first, start"),
            ("model", "a model, not"),
        ):
            done = cli(*command, source)
            assert (done.code, done.out) == (2, "")
            assert f"Error: {source} is {what}" in done.err
            assert f"--init-from {source}" in done.err.splitlines()[-1]
    (trained / "notes").mkdir()
    (trained / "notes" / "a.txt").write_text("to be or not to be\n" * 20)
    (trained / "model").rename(trained / "notes" / "model")
    assert cli("eval", "--data", "notes", "--json").json["n_chars"] == 380


def test_memorisation_finds_copies(cli, trained: Path) -> None:
    document = cli("eval", "--memorisation", "--json").json["memorisation"]
    assert document["n_samples"] == 10
    assert document["unseen"]["longest"] == 51  # whole stretches: the text repeats itself
    assert document["gap"] == pytest.approx(document["val_nats_per_char"] - document["train_nats_per_char"])
    assert "copies" in cli("eval", "--memorisation").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "nobody"),
        (["--stride", "9"], "block size"),
        (["--split", "test"], "--test-frac"),
        (["--data", "missing.txt"], "missing.txt"),
        (["--data", "empty.txt"], "empty"),
        (["--data", "latin.txt"], "UTF-8"),
        (["--data", "unknown.txt"], "does not know"),
        (["--data", "unknown.txt", "--split", "train"], "choose one"),
        (["--nats-per-char", "--json"], "alone"),
        (["--memorisation", "--perplexity"], "choose one"),
        (["--top", "3", "--perplexity"], "choose one"),
        (["--html", "page.txt"], "does not end in .html"),
        (["--text", ""], "empty"),
        (["--text", "to be", "--data", "latin.txt"], "leave one out"),
        (["--text", "to be", "--split", "train"], "leave one out"),
        (["--text", "Ωmega"], "does not know"),
        (["--text", "\udc80"], "surrogate"),
    ],
)
def test_what_cannot_be_scored_is_one_line(cli, trained: Path, arguments: list[str], message: str) -> None:
    (trained / "empty.txt").write_text("")
    (trained / "latin.txt").write_bytes(b"caf\xe9")
    (trained / "unknown.txt").write_text("Ωmega" * 20, encoding="utf-8")
    done = cli("eval", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert message in done.err.splitlines()[-1]


def test_without_its_data_a_run_has_its_kept_score(cli, trained: Path) -> None:
    import shutil

    cli("eval", "--json")
    shutil.rmtree(trained / "data", ignore_errors=True)
    (trained / "text.txt").write_text("something else")
    assert cli("eval", "--json").code == 0
    done = cli("eval", "--split", "train")
    assert done.code == 2
    assert "--data FILE" in done.err


def test_a_kept_score_needs_no_torch(trained: Path) -> None:
    import subprocess

    code = "import sys; from minigpt_cli.cli import run; run(['eval', '--nats-per-char']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=trained, capture_output=True, check=False).returncode == 0
