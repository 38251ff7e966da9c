"""A text of many documents, from training to what is written, scored, compared and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.tiny import chats

from minigpt_cli import cli as app
from minigpt_cli.checkpoints import load
from minigpt_cli.generation.open_run import open_model
from minigpt_cli.interchange import huggingface
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import downloads
from minigpt_cli.tokenization.contract import END_OF_TEXT

NAMES = [f"{a}{b}" for a in ("an", "be", "ca", "do", "el") for b in ("na", "ro", "lia", "min", "ta", "vi")]
MASKED = "--documents lines --document-mask"
TINY = "--n-layer 1 --n-embd 16 --n-head 2 --block-size 12 --batch-size 8 --device cpu --precision fp32 --attention plain"


@pytest.fixture(scope="module")
def _runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs that learned a list of names, and one that learned it as one text."""
    home = tmp_path_factory.mktemp("names")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        Path("names.txt").write_text("\n".join(NAMES) + "\n")
        for run, flags in {
            "names": "--documents lines",
            "bytes": "--documents lines --tokenizer byte",
            "masked": MASKED,
            "text": "",
        }.items():
            assert app.run(f"train names.txt --name {run} {flags} {TINY} --max-steps 60 --eval-every 60".split()) == 0
    return home


@pytest.fixture
def call(_runs: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(_runs)
    return cli


def test_what_is_written_begins_and_ends_as_a_document(call: Any) -> None:
    samples = json.loads(call("generate", "names", "--num-samples", "40", "--seed", "1", "--json").out)["samples"]
    assert sum(sample["stop_reason"] == "eot" for sample in samples) >= 38
    assert not [sample for sample in samples if END_OF_TEXT in sample["text"]]
    on = json.loads(call("generate", "names", "--seed", "1", "--ignore-eos", "--max-new-tokens", "60", "--json").out)["samples"][0]
    assert on["n_tokens"] == 60
    assert END_OF_TEXT in on["text"]
    one_text = json.loads(call("generate", "text", "--seed", "1", "--max-new-tokens", "60", "--json").out)["samples"][0]
    assert one_text["stop_reason"] == "length"


def test_a_model_of_documents_that_learned_one_text_since_stops_at_ends_too(call: Any) -> None:
    Path("one.txt").write_text("annabelle " * 40)
    assert call("train", "one.txt", "--init-from", "names", "--name", "since", "--max-steps", "1", "--eval-every", "1").code == 0
    samples = json.loads(call("generate", "since", "--prompt", "an", "--num-samples", "20", "--seed", "1", "--json").out)["samples"]
    assert "eot" in {sample["stop_reason"] for sample in samples}
    assert not [sample for sample in samples if END_OF_TEXT in sample["text"]]


def test_the_score_counts_what_ends_cost_and_not_their_characters(call: Any) -> None:
    found = json.loads(call("eval", "names", "--json").out)
    assert found["n_documents"] + found["n_chars"] == found["n_tokens"]
    assert found["nats_per_char"] == pytest.approx(found["nats_per_token"] * found["n_tokens"] / found["n_chars"])
    assert 0 < found["nats_per_char_without_eot"] < found["nats_per_char"]
    best = RunStore("runs").find("names").record.best
    assert best is not None
    assert best.nats_per_char == found["nats_per_char"]
    again = call("eval", "names", "--data", "names.txt", "--documents", "lines", "--json")
    assert json.loads(again.out)["n_documents"] == len(NAMES)


def test_documents_are_compared_over_tokenizers_and_not_with_one_text(call: Any) -> None:
    assert call("compare", "names", "bytes").code == 0
    refused = call("compare", "names", "text")
    assert refused.code == 2
    assert "documents" in refused.err


def test_memorisation_counts_whole_documents(call: Any) -> None:
    written = json.loads(call("eval", "names", "--memorisation", "--json").out)["memorisation"]["written"]
    assert written["documents"] == 100
    assert 0 < written["known"] <= written["ended"] <= 100  # of 60 steps
    assert written["ended"] > 90


def test_exports_know_where_a_document_ends(call: Any, tmp_path: Path) -> None:
    huggingface.export(load(RunStore("runs").find("names")), tmp_path / "hf")
    settings = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    run = open_model(RunStore("runs").find("names"))
    assert [settings["eos_token_id"]] == list(run.start)
    assert run.token_bytes[run.start[0]].decode() == END_OF_TEXT


def test_the_suggested_prompt_is_the_beginning_of_a_document(call: Any) -> None:
    done = call("train", "names.txt", "--documents", "lines", "--name", "again", "--max-steps", "2", *TINY.split())
    (line,) = [line for line in done.out.splitlines() if "generate again" in line]
    prompt = line.rpartition("--prompt ")[2]
    assert any(name.startswith(prompt) for name in NAMES)
    assert call("generate", "again", "--prompt", prompt).code == 0


def test_a_masked_run_is_recorded_scored_and_compared_as_masked(call: Any) -> None:
    best = RunStore("runs").find("masked").record.best
    assert best is not None
    found = json.loads(call("eval", "masked", "--json").out)
    assert found["nats_per_char"] == best.nats_per_char != json.loads(call("eval", "names", "--json").out)["nats_per_char"]
    assert "document_mask" in call("runs", "diff", "names", "masked").out
    assert call("compare", "names", "masked").code == 0
    strided = json.loads(call("eval", "masked", "--stride", "1", "--json").out)
    assert strided["nats_per_char"] != found["nats_per_char"]
    model = load(RunStore("runs").find("masked")).model
    model.end_of_text = None  # type: ignore[assignment]
    assert load(RunStore("runs").find("names")).model.end_of_text is None
    assert load(RunStore("runs").find("masked")).model.end_of_text is not None


def test_a_masked_run_is_resumed_to_the_bit(call: Any) -> None:
    short = f"train names.txt --max-steps 6 --eval-every 2 --schedule constant {MASKED} {TINY}".split()
    assert call(*short, "--name", "whole").code == 0
    assert call(*short, "--name", "parts", "--max-steps", "3").code == 0
    assert call("train", "--resume", "parts", "--max-steps", "6").code == 0
    assert RunStore("runs").find("parts").config.data.document_mask
    whole, parts = (load(RunStore("runs").find(name), "last").model.state_dict() for name in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)
    refused = call("train", "--resume", "parts", "--no-document-mask", "--max-steps", "8")
    assert refused.code == 2
    assert "--document-mask cannot change" in refused.err


def test_a_mask_is_refused_where_it_would_hide_nothing(call: Any) -> None:
    Path("chats.jsonl").write_text(chats(), encoding="utf-8")
    for words, why in {
        "names.txt --document-mask": "names.txt is one document",
        "names.txt --documents lines --document-mask --arch bigram": "--arch bigram has none",
        "chats.jsonl --document-mask": "conversations have none",
    }.items():
        refused = call("train", *words.split(), "--max-steps", "2", "--name", "refused")
        assert refused.code == 2
        assert why in refused.err
        assert refused.err.count("Error") == 1
        assert not Path("runs/refused").exists()


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_masked_run_writes_each_document_alone(engine: str, call: Any) -> None:
    def write(run: str, *flags: str) -> str:
        words = ["generate", run, "--ignore-eos", "--greedy", "--max-new-tokens", "40", "--engine", engine, "--json", *flags]
        text: str = json.loads(call(*words).out)["samples"][0]["text"]
        return text

    first, *others, _ = write("masked").split(END_OF_TEXT)
    assert others
    assert set(others) == {first}  # the most probable document
    assert write("masked", "--prompt", f"elta{END_OF_TEXT}").startswith(first)  # and what is asked before it does not matter
    assert len(set(write("names").split(END_OF_TEXT)[:-1])) > 1


def test_a_run_shows_the_hash_of_what_came_from_the_network(
    cli: Any, tiny: list[str], text: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("t.txt").write_text(text)
    monkeypatch.setattr(downloads, "download_url", lambda url, name, report: (Path("t.txt"), "5a" * 32))
    assert cli("train", "https://example.org/t.txt", "--name", "far", *tiny).code == 0
    assert "fetched https://example.org/t.txt (sha256 5a5a5a5a5a5a)" in " ".join(cli("runs", "show", "far").out.split())
    (fetched,) = json.loads(Path("runs/far/run.json").read_text())["corpus"]["fetched"]
    assert fetched["sha256"] == "5a" * 32


def test_the_card_of_an_export_says_that_documents_were_masked(call: Any, tmp_path: Path) -> None:
    for run, said in (("masked", True), ("names", False)):
        huggingface.export(load(RunStore("runs").find(run)), tmp_path / run)
        assert ("give it one document at a time" in (tmp_path / run / "README.md").read_text()) is said


def test_the_card_of_an_export_says_how_a_prompt_begins(call: Any, tmp_path: Path) -> None:
    for run, told in (("names", True), ("text", False)):
        huggingface.export(load(RunStore("runs").find(run)), tmp_path / run)
        assert ("put it before a prompt" in (tmp_path / run / "README.md").read_text("utf-8")) is told
