"""Models of the Hugging Face hub, from a server on this machine: train --init-from hf:…, runs import hf:…, runs export --push."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import torch
from harness.hub import COMMIT, TOKEN, Models, served, use_hub

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.commands.init_from import Origin
from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.records import RunRecord, now
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import downloads
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import TrainingText

TEXT = "hello world, hello words; " * 20
PINNED = f"hf:me/model@{COMMIT}"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """The files of me/model on the hub: the run `small`, exported. They may be changed."""
    monkeypatch.chdir(tmp_path)
    for folder in ("RUNS", "DATA"):
        monkeypatch.setenv(f"MINIGPT_{folder}_DIR", str(tmp_path / folder.lower()))
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    words = CharTokenizer.build(DataConfig(), TrainingText.of(TEXT))
    config = RunConfig.model_validate({"model": {"arch": "modern", "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}})
    run = RunStore().create("small")
    run.write_config(config)
    run.write_tokenizer(words.to_json())
    record = RunRecord(name="small", status="finished", created_at=now(), arch="modern", vocab_size=words.vocab_size)
    run.write_record(record)
    state = build_model(config.model, words.vocab_size, 1).state_dict()
    checkpoints.save(run, record, last=state, resume={}, resume_state={})
    assert minigpt(["runs", "export", "small", "--out", "hf"]) == 0
    files = {path.name: path.read_bytes() for path in Path("hf").iterdir()}
    files |= {"pytorch_model.bin": b"a pickle", "modeling.py": b"raise SystemExit", "onnx/model.safetensors": b"other"}
    for table in (Models.models, Models.gated, Models.claimed, Models.pushed, Models.made, Models.large, Models.asked):
        table.clear()
    Models.models["me/model"] = files
    with served(Models) as address:
        use_hub(monkeypatch, address, tmp_path / "hub")
        yield files


def weights(name: str) -> dict[str, torch.Tensor]:
    return dict(checkpoints.load(RunStore().find(name), "last").model.state_dict())


def downloaded() -> list[str]:
    """The files that were asked for."""
    return sorted({path.rpartition("/")[2] for path in Models.asked if "/resolve/" in path})


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_model_of_the_hub_becomes_a_run_whose_record_names_the_commit(model: dict[str, bytes], revision: str) -> None:
    assert minigpt(["runs", "import", f"hf:me/model{revision}", "--name", "back"]) == 0
    before, after = weights("small"), weights("back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    base = RunStore().find("back").record.base
    assert base is not None
    assert base.run == PINNED
    assert downloaded() == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_training_begins_from_a_model_of_the_hub_and_keeps_no_login(
    model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_in(monkeypatch)
    Path("text.txt").write_text(TEXT)
    arguments = ["--init-from", "hf:me/model", "--name", "tuned", "--max-steps", "1", "--batch-size", "2", "--threads", "1"]
    assert minigpt(["train", "text.txt", *arguments, "--device", "cpu"]) == 0
    base = RunStore().find("tuned").record.base
    assert base is not None
    assert base.run == PINNED
    assert re.search(rf"from {PINNED}: \d+ loaded, 0 missing", capsys.readouterr().err)
    assert not any(TOKEN.encode() in path.read_bytes() for path in RunStore().find("tuned").dir.rglob("*") if path.is_file())


def test_another_process_reads_the_same_commit(model: dict[str, bytes]) -> None:
    kind, (what, *_) = Origin("hf:me/model", RunStore()).__reduce__()
    assert (kind, what) == (Origin, PINNED)


def test_a_file_is_downloaded_once_and_again_if_it_was_damaged(model: dict[str, bytes], tmp_path: Path) -> None:
    assert minigpt(["runs", "import", "hf:me/model"]) == 0
    Models.asked.clear()
    assert minigpt(["runs", "import", "hf:me/model"]) == 0
    assert downloaded() == []
    (kept,) = (tmp_path / "cache").rglob("model.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    assert minigpt(["runs", "import", "hf:me/model", "--name", "whole"]) == 0
    assert downloaded() == ["model.safetensors"]
    assert all(torch.equal(weights("small")[name], tensor) for name, tensor in weights("whole").items())


def refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], code: int = 2) -> None:
    capsys.readouterr()
    assert minigpt(["runs", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(says, err), err
    assert TOKEN not in err
    assert [run.name for run in RunStore().runs()] == ["small"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf:me/nothing", "the hub has no public model me/nothing"),
        ("hf:me/model@v9", "me/model has no such revision"),
        ("hf:nobody", r"write hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:../../etc", "is not a model of the hub"),
        ("hf:../..", "the hub has no public model"),
    ],
)
def test_what_is_not_a_model_of_the_hub_is_one_line(
    model: dict[str, bytes], address: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["import", address], says, capsys)


def test_a_model_behind_an_agreement_says_where_to_accept_it(model: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    Models.gated.add("me/model")
    refused(["import", "hf:me/model"], r"accept it at https://huggingface\.co/me/model, then log in with `hf auth login`", capsys)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_connection_it_is_one_line(
    model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], offline: bool
) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE" if offline else "ENDPOINT", True if offline else "http://127.0.0.1:9")
    refused(["import", "hf:me/model"], r"cannot download hf:me/model \(\w+\): check the connection to huggingface\.co", capsys, 1)


def test_pickles_are_never_downloaded(model: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    del model["model.safetensors"]
    refused(["import", "hf:me/model"], r"has no model\.safetensors \(its pickled weights are never loaded\)", capsys)
    assert downloaded() == []


def test_another_architecture_is_refused_before_its_weights_are_downloaded(
    model: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    model["config.json"] = json.dumps({"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}).encode()
    refused(["import", "hf:me/model"], "unknown Hugging Face architecture 'evil'", capsys)
    assert downloaded() == ["config.json"]


@pytest.mark.parametrize(
    ("file", "size", "says", "code"),
    [
        ("model.safetensors", 1 << 50, "the model hf:me/model needs 1048576.0 GiB of memory", 1),
        ("config.json", 1 << 30, "config.json has 1073741824 bytes", 2),
        ("model.safetensors", 5, "came with another size or hash", 1),
    ],
)
def test_sizes_are_checked(
    model: dict[str, bytes], file: str, size: int, says: str, code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Models.claimed[file] = size
    refused(["import", "hf:me/model"], says, capsys, code)
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


# Pushing

FILES = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how the library sends a file, over one of its two ways


def log_in(monkeypatch: pytest.MonkeyPatch, token: str = TOKEN) -> None:
    monkeypatch.setenv("HF_TOKEN", token)


@FILES
def test_an_export_is_pushed_to_a_private_repository_and_can_be_imported(
    model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_in(monkeypatch)
    capsys.readouterr()
    assert minigpt(["runs", "export", "small", "--push", "me/new"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"small \(step 0\) is in http://127\.0\.0\.1:\d+/me/new as qwen3: README\.md, config\.json", out)
    assert TOKEN not in out + err
    assert [(made["name"], made["organization"]) for made in Models.made] == [("new", "me")]
    assert Models.made[0].get("private") or Models.made[0].get("visibility") == "private"
    files = Models.pushed["me/new"]
    expected = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files.keys() == expected
    assert b'from_pretrained("me/new")' in files["README.md"]
    Models.models["me/new"] = files
    assert minigpt(["runs", "import", "hf:me/new", "--name", "again"]) == 0
    assert all(torch.equal(weights("small")[name], tensor) for name, tensor in weights("again").items())


@FILES
def test_with_out_the_folder_is_kept_too(
    model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_in(monkeypatch)
    capsys.readouterr()
    assert minigpt(["runs", "export", "small", "--out", "kept", "--push", "me/new", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["out"] == "kept"
    assert facts["pushed_to"].endswith("/me/new")
    assert {path.name: path.read_bytes() for path in Path("kept").iterdir()} == Models.pushed["me/new"]


@pytest.mark.parametrize(
    ("arguments", "token", "says"),
    [
        (["--push", "me/new"], "", "needs your login: type `hf auth login`, or set HF_TOKEN"),
        (["--push", "me/new"], "hf_wrong", r"cannot push to me/new: the hub refuses this login \(401\)"),
        (["--push", "you/new"], TOKEN, r"cannot push to you/new: the hub refuses this login \(403\)"),
        (["--push", "new"], TOKEN, "--push new is not a repository: write OWNER/NAME"),
        (["--push", "me/new", "--format", "gguf"], TOKEN, "--push is for --format hf, not gguf"),
        ([], TOKEN, "give --out PATH"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    model: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    token: str,
    says: str,
) -> None:
    log_in(monkeypatch, token)
    refused(["export", "small", *arguments], says, capsys)
    assert Models.pushed == {}
