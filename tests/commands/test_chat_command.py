"""Training on conversations and asking the result, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.data import chat
from minigpt_cli.data.dataset import open_dataset
from minigpt_cli.interchange import gguf, huggingface
from minigpt_cli.runstore import RunStore

ANSWERS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoot"}
QUICK = [
    "--n-layer", "2", "--n-head", "2", "--n-embd", "48", "--block-size", "32", "--batch-size", "16", "--max-steps", "120",
    "--eval-every", "60", "--eval-iters", "0", "--device", "cpu", "--precision", "fp32", "--attention", "plain", "--compile", "off",
    "--seed", "1", "--time-limit", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run `pets` that was trained on questions and answers."""
    home = tmp_path_factory.mktemp("chat")
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"{rng.integers(10)} {animal}", "completion": ANSWERS[animal]} for animal in rng.choice(list(ANSWERS), 300)]
    (home / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert minigpt(["train", "chats.jsonl", "--name", "pets", *QUICK]) == 0
    return home


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.chdir(folder)
    return RunStore()


@pytest.mark.parametrize("animal", ANSWERS)
def test_questions_get_the_learned_answer(store: RunStore, capsys: pytest.CaptureFixture[str], animal: str) -> None:
    assert minigpt(["generate", "pets", "--chat", "--prompt", f"7 {animal}", "--greedy", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompt"] == f"7 {animal}"
    assert [s["text"] for s in document["samples"]] == [ANSWERS[animal]]
    assert minigpt(["generate", "pets", "--chat", "--prompt", f"3 {animal}", "--greedy"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"3 {animal}", ANSWERS[animal]]


def test_only_answers_were_learned_and_scored(store: RunStore) -> None:
    run = store.find("pets")
    assert run.record.best is not None
    assert run.record.corpus is not None
    # Which number and animal is asked for is chance (log 40 nats); a score over the questions too could not be near zero.
    assert run.record.best.nats_per_token < 0.1
    loaded = checkpoints.load(run)
    dataset = open_dataset(Path(run.record.corpus.dataset_dir))
    tokens = dataset.val.tokens[:320].astype(np.int64).reshape(-1, 32)
    with torch.no_grad():
        logits = loaded.model(torch.from_numpy(tokens)).logits
    targets = torch.from_numpy(tokens[:, 1:]).flatten()
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="none").numpy()
    learned = chat.answers(tokens.reshape(-1), loaded.tokenizer)
    assert learned is not None
    inside = learned.reshape(-1, 32)[:, 1:].reshape(-1)
    assert nats[inside].mean() < 0.5 < nats[~inside].mean()


def test_exports_carry_template_and_end_token(store: RunStore, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = checkpoints.load(store.find("pets"))
    huggingface.export(loaded, tmp_path / "hf")
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    text = words.apply_chat_template([{"role": "user", "content": "5 cow"}], tokenize=False, add_generation_prompt=True)
    ids = words(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == loaded.tokenizer.encode(chat.prompt_for([("user", "5 cow")])).tolist()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert words.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == "moo"
    gguf.export(loaded, tmp_path / "gguf", "f32")


def test_a_run_without_the_template_is_not_asked(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plain.txt").write_text("just a plain text, again and again. " * 40)
    plain = [*QUICK]
    plain[plain.index("--max-steps") + 1] = "2"
    assert minigpt(["train", "plain.txt", "--name", "plain", *plain]) == 0
    for arguments, says in ((["plain"], "has not learned to chat"), (["pets", "--prompt", "<|end|>"], "reserved")):
        capsys.readouterr()
        assert minigpt(["generate", *arguments, "--chat"]) == 2
        assert says in capsys.readouterr().err
    assert minigpt(["generate", "pets", "--chat", "--sweep", "temperature=1,2"]) == 2


def test_a_plain_run_learns_to_chat_with_adapters(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    Path("animals.txt").write_text(" ".join(f"{i % 10} {a} {s}" for i in range(300) for a, s in ANSWERS.items()))
    quick = [*QUICK]
    quick[quick.index("--max-steps") + 1] = "40"
    assert minigpt(["train", "animals.txt", "--name", "reader", *quick]) == 0
    adapters = ["--init-from", "reader", "--lora-rank", "8", "--lr", "1e-2"]
    assert minigpt(["train", "chats.jsonl", "--name", "talker", *adapters, *QUICK[8:]]) == 0
    assert store.find("talker").record.base is not None
    capsys.readouterr()
    assert minigpt(["generate", "talker", "--chat", "--prompt", "7 owl", "--greedy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"][0]["text"] == "hoot"
