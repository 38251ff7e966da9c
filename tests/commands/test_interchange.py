"""runs export and runs import, as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.vocabularies import sentencepiece_model

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.records import RunRecord, now
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import TrainingText

SIZES = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """A folder with the runs `small` (modern), `relu` (classic) and `table` (bigram)."""
    monkeypatch.setenv("MINIGPT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    store = RunStore()
    words = CharTokenizer.build(DataConfig(), TrainingText.of("hello wrd"))
    settings: dict[str, dict[str, Any]] = {
        "small": {"arch": "modern", **SIZES},
        "relu": {"arch": "classic", "activation": "relu", **SIZES},
        "table": {"arch": "bigram", "block_size": 8},
    }
    for name, model in settings.items():
        config = RunConfig.model_validate({"model": model})
        run = store.create(name)
        run.write_config(config)
        run.write_tokenizer(words.to_json())
        state = build_model(config.model, words.vocab_size, 1).state_dict()
        record = RunRecord(name=name, status="finished", created_at=now(), arch=model["arch"], vocab_size=words.vocab_size)
        run.write_record(record)
        checkpoints.save(run, record, last=state, resume={}, resume_state={})
    return store


def weights(store: RunStore, name: str) -> dict[str, torch.Tensor]:
    return dict(checkpoints.load(store.find(name), "last").model.state_dict())


def test_export_then_import_gives_the_same_run(runs: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert minigpt(["runs", "export", "small", "--out", "hf", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["architecture"], facts["format"], facts["out"]) == ("qwen3", "hf", "hf")
    assert minigpt(["runs", "import", "hf", "--name", "back"]) == 0
    assert "0 missing, 0 unexpected, 0 wrongly shaped" in capsys.readouterr().out
    before, after = weights(runs, "small"), weights(runs, "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    record = runs.find("back").record
    assert (record.status, record.stop_reason, record.n_params) == ("finished", "imported", sum(t.numel() for t in after.values()))
    assert record.base is not None
    assert record.base.run == "hf"
    assert list(checkpoints.load(runs.find("back")).tokenizer.encode("hello")) == list(
        checkpoints.load(runs.find("small")).tokenizer.encode("hello")
    )


def test_an_imported_run_is_whole_and_has_no_training_to_continue(runs: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert minigpt(["runs", "export", "small", "--out", "hf"]) == 0
    assert minigpt(["runs", "import", "hf", "--name", "back"]) == 0
    assert minigpt(["runs", "verify", "back"]) == 0
    assert "no training to continue" in capsys.readouterr().out
    assert minigpt(["train", "--resume", "back", "--max-steps", "9"]) == 2
    assert "--init-from" in capsys.readouterr().err


def test_a_folder_of_links_as_in_the_cache_of_the_hub_is_imported(runs: RunStore, tmp_path: Path) -> None:
    assert minigpt(["runs", "export", "small", "--out", "hf"]) == 0
    (tmp_path / "snapshot").mkdir()
    for i, path in enumerate(sorted((tmp_path / "hf").iterdir())):
        (tmp_path / "snapshot" / path.name).symlink_to(path.rename(tmp_path / f"blob{i}"))
    assert minigpt(["runs", "import", "snapshot", "--name", "back"]) == 0
    assert all(torch.equal(tensor, weights(runs, "back")[name]) for name, tensor in weights(runs, "small").items())


def test_a_hugging_face_folder_with_only_a_sentencepiece_vocabulary_is_imported(
    runs: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = [("<unk>", 0.0, 2), *((letter, -1.0 - i, 1) for i, letter in enumerate("▁helowr"))]
    assert minigpt(["runs", "export", "small", "--out", "hf"]) == 0
    (tmp_path / "hf" / "tokenizer.json").unlink()
    (tmp_path / "hf" / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    assert minigpt(["runs", "import", "hf", "--name", "back"]) == 0
    assert minigpt(["runs", "import", "hf", "--name", "same", "--tokenizer", "hf/tokenizer.model"]) == 0
    for name in ("back", "same"):
        tokenizer = checkpoints.load(runs.find(name)).tokenizer
        assert tokenizer.encode("hello wo").tolist() == [2, 3, 4, 4, 5, 1, 6, 5]


def test_export_gguf_writes_file_card_and_modelfile(runs: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the gguf library is not installed")
    assert minigpt(["runs", "export", "small", "--format", "gguf", "--out", "g"]) == 0
    assert sorted(p.name for p in (tmp_path / "g").iterdir()) == ["Modelfile", "README.md", "small-f16.gguf"]
    assert "PARAMETER num_ctx 8" in (tmp_path / "g" / "Modelfile").read_text()
    assert "small-f16.gguf" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "table", "--out", "x"], "bigram"),
        (["export", "relu", "--format", "gguf", "--out", "x"], "--activation relu"),
        (["export", "small", "--format", "gguf", "--dtype", "q4", "--out", "x"], "q4"),
        (["export", "small", "--format", "onyx", "--out", "x"], "unknown export format 'onyx': did you mean 'onnx'"),
        (["export", "small", "--format", "onnx", "--out", "x"], "does not end in .onnx"),
        (["export", "smell", "--out", "x"], "did you mean 'small'"),
        (["export", "small", "--out", "runs"], "exists already"),
        (["import", "nowhere"], "neither a file"),
        (["import", "runs/small/last.safetensors", "--arch", "classic", "--name", "new"], "does not fit|nothing in"),
        (["import", "runs/small", "--name", "small"], "exists already"),
        (["import", "runs/small", "--name", "../evil"], "cannot name a run"),
        (["import", "runs/small", "--block-size", "0"], "--block-size"),
        (["import", "text.pt"], "torch 1.6"),
        (["import", "text.txt"], "suffix"),
    ],
)
def test_what_cannot_be_done_is_one_line_exit_2_and_leaves_nothing(
    runs: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    for name in ("text.pt", "text.txt"):
        (tmp_path / name).write_text("just a text")
    before = sorted(p for p in tmp_path.rglob("*") if p.name != ".lock")
    assert minigpt(["runs", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    import re

    assert re.search(says, err)
    assert sorted(p for p in tmp_path.rglob("*") if p.name != ".lock") == before


def test_bare_tensors_take_sizes_from_flags_and_partial_fills_in(runs: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--block-size", "8", "--n-layer", "2", "--n-head", "2", "--n-embd", "16"]
    assert minigpt(["runs", "import", "runs/small/last.safetensors", "--name", "deep", *sizes]) == 2
    assert "--partial" in capsys.readouterr().err
    assert minigpt(["runs", "import", "runs/small/last.safetensors", "--name", "deep", *sizes, "--partial", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["loaded"] == 11
    assert len(facts["missing"]) == 8
    assert torch.equal(weights(runs, "deep")["head.weight"], weights(runs, "small")["head.weight"])


def test_importing_nanogpt_takes_its_characters(runs: RunStore, tmp_path: Path) -> None:
    import pickle

    words = sorted("hello wrd")
    state = {f"_orig_mod.{name}": tensor for name, tensor in nanogpt_state(len(set(words))).items()}
    args = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": False, "vocab_size": len(set(words)), "dropout": 0.0}
    (tmp_path / "out").mkdir()
    torch.save({"model": state, "model_args": args, "config": {}}, tmp_path / "out" / "ckpt.pt")
    (tmp_path / "out" / "meta.pkl").write_bytes(pickle.dumps({"itos": dict(enumerate(sorted(set(words))))}))
    assert minigpt(["runs", "import", "out", "--name", "nano"]) == 0
    loaded = checkpoints.load(runs.find("nano"))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("hello")) == "hello"
    assert loaded.config.model.arch == "classic"
    assert minigpt(["generate", "nano", "--prompt", "hell", "--max-new-tokens", "3", "--seed", "1"]) == 0


def nanogpt_state(vocab_size: int) -> dict[str, torch.Tensor]:
    C = 16
    shapes = {"wte": (vocab_size, C), "wpe": (8, C), "ln_f": (C,), "h.0.ln_1": (C,), "h.0.attn.c_attn": (3 * C, C), "h.0.ln_2": (C,)}
    shapes |= {"h.0.attn.c_proj": (C, C), "h.0.mlp.c_fc": (4 * C, C), "h.0.mlp.c_proj": (C, 4 * C)}
    state = {f"transformer.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return state | {"lm_head.weight": state["transformer.wte.weight"]}
