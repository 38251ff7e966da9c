"""Exported directories against transformers itself, and its directories against ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.errors import UsageError
from minigpt_cli.interchange import huggingface
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run

MakeRun = Callable[..., Run]
SIZES: dict[str, Any] = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}


def opened(folder: Path) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def test_transformers_opens_an_export_with_the_same_logits_and_greedy_text(
    make_run: MakeRun, tmp_path: Path, family: str, text: str
) -> None:
    loaded = checkpoints.load(make_run(model=family))
    exported = huggingface.export(loaded, tmp_path / "out")
    assert exported.architecture == family.partition("-")[0]
    model, words = opened(tmp_path / "out")
    ids = torch.tensor([loaded.tokenizer.encode(text[:30]).tolist()])
    assert words(text[:30]).input_ids == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, loaded.model(ids).logits, atol=1e-4, rtol=1e-4)
        prompt = ids[:, :8]
        theirs = model.generate(prompt, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(prompt), pad_token_id=0)
        ours = prompt
        for _ in range(20):
            ours = torch.cat([ours, loaded.model(ours).logits[:, -1:].argmax(-1)], dim=1)
    assert words.decode(theirs[0]) == loaded.tokenizer.decode(ours[0].numpy())


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_auto_tokenizer_gives_the_same_ids_and_text(make_run: MakeRun, tmp_path: Path, kind: str, text: str) -> None:
    loaded = checkpoints.load(make_run(kind=kind))
    huggingface.export(loaded, tmp_path / "out")
    _, words = opened(tmp_path / "out")
    ids = loaded.tokenizer.encode(text).tolist()
    assert words(text).input_ids == ids
    assert words.decode(ids) == text


def test_export_then_import_gives_equal_weights_and_configuration(make_run: MakeRun, tmp_path: Path, family: str) -> None:
    loaded = checkpoints.load(make_run(model=family))
    huggingface.export(loaded, tmp_path / "out")
    back = huggingface.read(tmp_path / "out")
    state = loaded.model.state_dict()
    assert back.tensors.keys() == state.keys()
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in state.items())
    assert back.tokenizer is not None
    assert back.tokenizer.to_json() == loaded.tokenizer.to_json()
    same = ("arch", "n_layer", "n_head", "n_embd", "block_size", "tie_weights")
    assert [getattr(back.config, n) for n in same] == [getattr(loaded.config.model, n) for n in same]


def test_card_has_score_interval_text_and_settings(make_run: MakeRun, tmp_path: Path) -> None:
    exported = huggingface.export(checkpoints.load(make_run("my-run")), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in ("# my-run", "1.5000 nats per character", "1.4000 to 1.6000", "1" * 64, "| n_embd | 32 |", "step 7 of 9", "AutoTokenizer"):
        assert fact in card
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == exported.files


@pytest.mark.parametrize(
    ("model", "says"),
    [({"arch": "bigram"}, "bigram"), ({"arch": "moe", "moe_balance": "bias", **SIZES}, "--moe-balance bias")],
)
def test_what_the_format_cannot_express_is_refused_by_name_before_writing(
    make_run: MakeRun, tmp_path: Path, model: dict[str, Any], says: str
) -> None:
    loaded = checkpoints.load(make_run(model=model))
    for block in getattr(loaded.model, "blocks", []):
        block.moe.balance_bias += 0.1
    with pytest.raises(UsageError, match=says):
        huggingface.export(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_content_is_never_overwritten_and_failure_leaves_nothing(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = checkpoints.load(make_run())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists already"):
        huggingface.export(loaded, tmp_path / "full")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(huggingface.safetensors, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match="disk is full"):
        huggingface.export(loaded, tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_half_precision_weights_open_too(make_run: MakeRun, tmp_path: Path) -> None:
    loaded = checkpoints.load(make_run())
    huggingface.export(loaded, tmp_path / "out", "bf16")
    model, _ = opened(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    with pytest.raises(UsageError, match="q8_0"):
        huggingface.export(loaded, tmp_path / "other", "q8_0")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("hidden_act", "gelu", "hidden_act"),
        ("attention_bias", True, "attention_bias"),
        ("model_type", "mamba", "mamba"),
        ("hidden_size", "wide", "not a configuration"),
        ("num_hidden_layers", 10**9, "n_layer"),
    ],
)
def test_foreign_settings_that_we_lack_are_refused_by_name(make_run: MakeRun, tmp_path: Path, name: str, value: object, says: str) -> None:
    huggingface.export(checkpoints.load(make_run()), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(UsageError, match=says):
        huggingface.read(tmp_path / "out")


def test_gpt2_of_the_real_shape_is_read_and_computes_the_same(tmp_path: Path, shared_data: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((shared_data / "gpt2" / name).read_bytes())
    foreign = huggingface.read(tmp_path)
    assert sum(t.numel() for t in foreign.tensors.values()) == 124_439_808
    assert foreign.tokenizer is not None
    ids = foreign.tokenizer.encode("Hello world").tolist()
    assert ids == [15496, 995]
    ours = build_model(foreign.config, foreign.tokenizer.vocab_size)
    ours.load_state_dict(foreign.tensors)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(torch.tensor([ids])).logits, theirs(torch.tensor([ids])).logits, atol=1e-4, rtol=1e-4)
