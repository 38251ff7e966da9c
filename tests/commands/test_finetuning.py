"""train --init-from, with and without adapters, as typed: what is learned, what is stored, and what is left alone."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.evaluation.scoring import Reader, score_text
from minigpt_cli.interchange import huggingface
from minigpt_cli.interchange.importing import merge_run
from minigpt_cli.models import lora
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.verify import verify

TINY = ["--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--block-size", "16", "--time-limit", "0"]
QUICK = [
    "--batch-size", "8", "--eval-every", "20", "--eval-iters", "2", "--device", "cpu", "--precision", "fp32", "--attention", "plain",
    "--compile", "off", "--seed", "1",
]  # fmt: skip


def sentences(words: list[str], seed: int, count: int = 700) -> str:
    chooser = random.Random(seed)
    return " ".join(chooser.choice(words) for _ in range(count))


OLD = sentences(["the", "cat", "sat", "on", "a", "mat", "and", "ran"], 1)
NEW = sentences(["nat", "tan", "dash", "hands", "oat", "sets"], 2)


def digest(run: Run) -> dict[str, str]:
    files = [p for p in run.dir.rglob("*") if p.is_file() and p.name not in (".lock",) and "scores" not in p.parts]
    return {str(p.relative_to(run.dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and a run `base` that has learned one of them."""
    folder = tmp_path_factory.mktemp("finetuning")
    (folder / "old.txt").write_text(OLD)
    (folder / "new.txt").write_text(NEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert minigpt(["train", "old.txt", "--name", "base", "--max-steps", "60", *TINY, *QUICK]) == 0
    return folder


@pytest.fixture
def store(base: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.chdir(base)
    return RunStore()


def train(name: str, *flags: str, text: str = "new.txt", steps: int = 60) -> int:
    return minigpt(["train", text, "--name", name, "--init-from", "base", "--max-steps", str(steps), *QUICK, *flags])


def nats_per_char(run: Run) -> float:
    loaded = checkpoints.load(run)
    return float(score_text(Reader(loaded.model, loaded.tokenizer, 16), NEW[-400:]).nats_per_char)


def test_adapters_beat_their_frozen_base_and_leave_it_unchanged(store: RunStore) -> None:
    before, plain = digest(store.find("base")), nats_per_char(store.find("base"))
    assert train("tuned", "--lora-rank", "4", "--lr", "1e-2") == 0
    tuned = store.find("tuned")
    assert nats_per_char(tuned) < plain - 0.3
    assert digest(store.find("base")) == before
    assert tuned.record.base is not None
    assert tuned.record.base.sha256 == store.find("base").record.files["best.safetensors"].sha256
    stored = checkpoints.load_tensors(tuned.file("best.safetensors"))
    vocabulary = {"token_embedding.weight", "head.weight"}  # the new text has other characters
    assert {name for name in stored if not lora.is_adapter(name)} <= vocabulary
    assert tuned.file("best.safetensors").stat().st_size < store.find("base").file("best.safetensors").stat().st_size / 2
    assert not [f for f in verify(tuned) if f.level == "problem"]


def test_generate_and_leaderboard_take_a_run_of_adapters(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("writer", "--lora-rank", "2", steps=20) == 0
    capsys.readouterr()
    assert minigpt(["generate", "writer", "--prompt", "ta", "--max-new-tokens", "5", "--greedy", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["samples"][0]["text"]
    loaded = checkpoints.load(store.find("writer"))
    ids = torch.tensor([loaded.tokenizer.encode("ta").tolist()])
    for _ in range(5):
        ids = torch.cat([ids, loaded.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert text == loaded.tokenizer.decode(ids[0, 2:].numpy())
    assert minigpt(["runs", "leaderboard"]) == 0
    assert "writer" in capsys.readouterr().out


@pytest.mark.parametrize("bits", ["8", "4"])
def test_adapters_learn_on_a_base_in_fewer_bits(store: RunStore, bits: str) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    assert train(f"small{bits}", "--lora-rank", "4", "--lr", "1e-2", "--quantize-base", bits) == 0
    assert nats_per_char(store.find(f"small{bits}")) < nats_per_char(store.find("base")) - 0.3


def test_export_and_merge_equal_base_plus_adapters(store: RunStore, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    assert train("merging", "--lora-rank", "4", "--lora-targets", "qkv,down", steps=20) == 0
    run = store.find("merging")
    stored = checkpoints.load_tensors(run.file("best.safetensors"))
    config = run.config.lora
    from minigpt_cli.models.contract import build_model

    adapted = build_model(run.config.model, run.record.vocab_size)
    adapted.load_state_dict(checkpoints.frozen_weights(run, stored))
    lora.attach(adapted, config, 0)
    adapted.load_state_dict(stored, strict=False)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        huggingface.export(checkpoints.load(run), tmp_path / "hf")
        exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(ids).logits
        merged = merge_run(store, run)
        alone = checkpoints.load(merged).model(ids).logits
    torch.testing.assert_close(exported, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    assert merged.config.lora.lora_rank == 0
    assert merged.record.best == run.record.best


def test_resumed_adapters_end_where_uninterrupted_ones_do(store: RunStore) -> None:
    flags = ["--lora-rank", "3", "--schedule", "constant"]
    assert train("straight", *flags, steps=40) == 0
    assert train("broken", *flags, steps=20) == 0
    assert minigpt(["train", "--resume", "broken", "--max-steps", "40"]) == 0
    whole, parts = (checkpoints.load_tensors(store.find(name).file("last.safetensors")) for name in ("straight", "broken"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_renamed_base_is_found_and_a_missing_base_is_an_error(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("orphan", "--lora-rank", "1", steps=20) == 0
    assert minigpt(["runs", "rename", "base", "renamed"]) == 0
    assert checkpoints.load(store.find("orphan"))
    hidden = store.dir.parent / "hidden"
    (store.dir / "renamed").rename(hidden)
    try:
        capsys.readouterr()
        assert minigpt(["generate", "orphan", "--max-new-tokens", "1"]) == 1
        message = capsys.readouterr().err
        assert "adapters for run 'base'" in message
        assert message.count("\n") == 1
    finally:
        hidden.rename(store.dir / "base")


def test_fine_tuning_without_adapters_begins_where_the_base_ended(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(store.find("base"))
    assert train("full", "--lr", "1e-4", "--muon-lr", "1e-3", text="old.txt", steps=20) == 0
    full, old = store.find("full").record, store.find("base").record
    assert full.best is not None
    assert old.best is not None
    assert full.best.nats_per_char < old.best.nats_per_char + 0.05
    assert "0 missing" in capsys.readouterr().err
    assert digest(store.find("base")) == before


def test_merge_makes_a_run_that_needs_no_base(store: RunStore, tmp_path: Path) -> None:
    arguments = ["train", "--data", "new.txt", "--name", "both", "--init-from", "base", "--lora-rank", "2", "--merge", "--max-steps", "10"]
    assert minigpt([*arguments, *QUICK]) == 0
    (store.dir / "both-merged").rename(tmp_path / "alone")  # away from its base
    loaded = checkpoints.load(Run(tmp_path / "alone"))
    expected = checkpoints.load(store.find("both")).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())


def test_merge_works_with_resume_and_is_refused_before_training_where_it_cannot(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert minigpt(["train", "new.txt", "--name", "later", "--init-from", "base", "--lora-rank", "2", "--max-steps", "5", *QUICK]) == 0
    assert minigpt(["train", "--resume", "later", "--max-steps", "6", "--merge"]) == 0
    expected = checkpoints.load(store.find("later")).model.state_dict()
    loaded = checkpoints.load(store.find("later-merged")).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    for name, says in (("later", "'later-merged' exists already"), ("base", "has none")):
        before = (store.dir / name / "run.json").read_bytes()
        capsys.readouterr()
        assert minigpt(["train", "--resume", name, "--max-steps", "90", "--merge"]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
        assert (store.dir / name / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--merge"], "--lora-rank"),
        (["--data", "old.txt"], "mean the same"),
        (["--lora-rank", "2"], "--init-from"),
        (["--lora-rank", "2", "--dry-run"], "--init-from"),
        (["--vocab-size", "300"], "add --tokenizer bpe"),
        (["--init-from", "nowhere"], "neither a file"),
        (["--init-from", "base", "--vocab-size", "300"], "base brings its own: leave it out, or add --tokenizer bpe"),
        (["--init-from", "base", "--n-layer", "3"], "--partial"),
        (["--init-from", "base", "--lora-rank", "2", "--lora-targets", "ears"], "--lora-targets ears"),
        (["--init-from", "base", "--quantize-base", "8"], "--lora-rank"),
        (["--init-from", "old.txt"], "suffix"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_run(
    store: RunStore, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    before = store.names()
    capsys.readouterr()
    assert minigpt(["train", "new.txt", *arguments, "--max-steps", "5", *QUICK]) == 2
    err = capsys.readouterr().err
    assert says in err.splitlines()[-1]
    assert store.names() == before


def test_training_continues_with_a_hugging_face_folder(store: RunStore, tmp_path: Path) -> None:
    huggingface.export(checkpoints.load(store.find("base")), tmp_path / "hf")
    arguments: list[Any] = ["train", "old.txt", "--name", "from-hf", "--init-from", str(tmp_path / "hf"), "--max-steps", "10", *QUICK]
    assert minigpt(arguments) == 0
    assert store.find("from-hf").config.model.n_embd == 32


def old_score(run: Run) -> float:
    """Nats per character of old text, its first character aside, whose share is that of a vocabulary."""
    loaded = checkpoints.load(run)
    ids = torch.tensor([loaded.tokenizer.encode(OLD[i : i + 17]).tolist() for i in range(0, 1600, 16)])
    with torch.no_grad():
        logits = loaded.model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


@pytest.mark.parametrize("adapters", [[], ["--lora-rank", "2"]])
def test_new_characters_extend_the_vocabulary_and_leave_the_old_score(
    store: RunStore, capsys: pytest.CaptureFixture[str], adapters: list[str], tmp_path: Path
) -> None:
    name = f"accents{len(adapters)}"
    Path("accents.txt").write_text(sentences(["où", "été", "mat", "año", "你好"], 3))
    capsys.readouterr()
    frozen = ["--lr", "1e-9", "--muon-lr", "1e-9", "--weight-decay", "0"]
    assert train(name, *adapters, *frozen, text="accents.txt", steps=2) == 0
    notices = capsys.readouterr().err
    assert "the vocabulary is extended by" in notices
    assert "'é' (U+00E9)" in notices
    run, base = store.find(name), store.find("base")
    assert old_score(run) == pytest.approx(old_score(base), abs=1e-4)
    old, new = (checkpoints.load(r).tokenizer for r in (base, run))
    assert new.decode(new.encode("où été on a mat, 你好".replace(",", ""))) == "où été on a mat 你好"
    assert [new.token_bytes()[i] for i in range(old.vocab_size)] == old.token_bytes()
    assert minigpt(["train", "--resume", name, "--max-steps", "3"]) == 0
    again = capsys.readouterr().err
    assert "accents.txt: " in again
    assert "extended" not in again
    assert minigpt(["generate", name, "--prompt", "été", "--max-new-tokens", "3"]) == 0
    huggingface.export(checkpoints.load(store.find(name)), tmp_path / "hf")
    assert huggingface.read(tmp_path / "hf").tokenizer is not None
    if adapters:
        assert merge_run(store, store.find(name)).record.vocab_size == new.vocab_size


def test_what_another_tokenizer_forgets_is_said_before_training(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("narrow", "--tokenizer", "char", steps=2) == 0
    lost = sorted(set(OLD) - set(NEW))
    assert f"forgotten: {len(lost)} of their {len(set(OLD))} tokens, which our tokenizer lacks: {' '.join(map(repr, lost))}" in (
        capsys.readouterr().err
    )


def test_a_run_with_new_characters_resumes_without_its_base(store: RunStore) -> None:
    Path("more.txt").write_text(sentences(["mat", "fjord", "quiz"], 4))
    assert train("alone", text="more.txt", steps=2) == 0
    assert minigpt(["runs", "rename", "base", "elsewhere"]) == 0
    try:
        assert minigpt(["train", "--resume", "alone", "--max-steps", "4"]) == 0
    finally:
        assert minigpt(["runs", "rename", "elsewhere", "base"]) == 0


def test_conversations_after_plain_text_leave_the_old_score(store: RunStore) -> None:
    rows = [{"prompt": f"cat {i % 7}?", "completion": "a mat!"} for i in range(60)]
    Path("talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train("talk", "--lr", "1e-9", "--muon-lr", "1e-9", "--weight-decay", "0", text="talk.jsonl", steps=2) == 0
    assert old_score(store.find("talk")) == pytest.approx(old_score(store.find("base")), abs=1e-4)
    assert store.find("talk").record.vocab_size > store.find("base").record.vocab_size + 4


def test_prepared_tokens_are_learned_from_the_weights_of_a_run(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert minigpt(["tokenize", "new.txt", "--out", "tokens"]) == 0
    assert train("ready", text="tokens", steps=2) == 0
    assert "forgotten: " in capsys.readouterr().err
    assert minigpt(["train", "--resume", "ready", "--max-steps", "4"]) == 0
