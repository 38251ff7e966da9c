"""Training on conversations and asking the result, as typed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.commands.serve import build_app
from minigpt_cli.data import chat
from minigpt_cli.data.dataset import open_dataset
from minigpt_cli.interchange import gguf, huggingface
from minigpt_cli.runstore.store import RunStore

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


@pytest.mark.parametrize("animal", ANSWERS)
def test_the_server_ends_an_answer_where_it_ends(store: RunStore, animal: str) -> None:
    question = {"model": "pets", "prompt": chat.prompt_for([("user", f"7 {animal}")]), "max_tokens": 100, "temperature": 0}

    async def ask() -> dict[str, Any]:
        app = build_app(store, api_key=None, engine="torch", only=None, ckpt="best", local_only=True)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return (await client.post("/v1/completions", json=question)).json()

    choice = asyncio.run(ask())["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (ANSWERS[animal], "stop")


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


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert minigpt([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_record_eval_and_compare_say_the_same_of_the_same_weights(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    plain = [*QUICK]
    plain[plain.index("--max-steps") + 1] = "5"
    assert minigpt(["train", "chats.jsonl", "--name", "young", *plain]) == 0
    runs = {name: store.find(name) for name in ("pets", "young")}
    completions = [json.loads(line)["completion"] for line in Path("chats.jsonl").read_text().splitlines()[-30:]]
    scores = {}
    for name, run in runs.items():
        for fresh in (["--fresh"], []):
            scores[name] = json_of(capsys, "eval", name, *fresh)
            assert scores[name]["nats_per_char"] == run.record.best.nats_per_char  # type: ignore[union-attr]
            assert scores[name]["nats_per_token"] == run.record.best.nats_per_token  # type: ignore[union-attr]
            assert scores[name]["ci95"]["nats_per_char"] == list(run.record.best.ci95)  # type: ignore[union-attr,arg-type]
        assert (scores[name]["n_answers"], scores[name]["n_chars"]) == (30, sum(map(len, completions)))
        assert scores[name]["n_tokens"] == 30 + sum(map(len, completions))
        assert scores[name]["text_sha256"] == run.record.corpus.splits["val"].sha256  # type: ignore[union-attr]
    compared = json_of(capsys, "compare", "young", "pets")
    assert [run["nats_per_char"] for run in compared["runs"]] == [scores["young"]["nats_per_char"], scores["pets"]["nats_per_char"]]
    assert (compared["n_answers"], compared["n_chars"]) == (30, scores["pets"]["n_chars"])
    # The questions are chance, and the run that learned answers for longer predicts them worse: only the answers may decide.
    assert [pair["verdict"] for pair in compared["pairs"]] == ["b_better"]
    assert [row["run"] for row in json_of(capsys, "runs", "leaderboard", "--where", "run=pets or run=young")] == ["pets", "young"]
    assert minigpt(["compare", "young", "pets", "--prompt", "7 cow"]) == 0
    shown = capsys.readouterr().out
    assert "validation split of chats.jsonl, its 30 answers alone: " in shown
    assert "    7 cowmoo\n" in shown
    assert minigpt(["eval", "pets"]) == 0
    assert "validation split of chats.jsonl, its 30 answers alone: " in capsys.readouterr().out


def test_scores_are_those_of_a_plain_forward_pass(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run = store.find("pets")
    loaded, dataset = checkpoints.load(run), open_dataset(Path(run.record.corpus.dataset_dir))  # type: ignore[union-attr]
    end, assistant = (chat.token_ids(loaded.tokenizer)[mark] for mark in (chat.END, "<|assistant|>"))  # type: ignore[index]
    block, train, val = 32, dataset.train.tokens.tolist(), dataset.val.tokens.tolist()
    total, text, speaking = 0.0, "", False
    for start in range(0, len(val), block):
        targets = val[start : start + block]
        inputs = [(train[-1:] + val)[start + i] for i in range(len(targets))]
        with torch.no_grad():
            nats = -torch.log_softmax(loaded.model(torch.tensor([inputs])).logits[0].double(), -1)
        for i, token in enumerate(targets):
            total += nats[i, token].item() if speaking else 0.0
            text += loaded.tokenizer.decode([token]) if speaking and token != end else ""
            speaking = (speaking or token == assistant) and token != end
    found = json_of(capsys, "eval", "pets")
    assert found["n_chars"] == len(text)
    assert found["nats_per_char"] == pytest.approx(total / len(text), rel=1e-5)


def test_conversations_from_a_file_are_read_as_such(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    last = Path("chats.jsonl").read_text().splitlines()[-30:]
    Path("val.jsonl").write_text("\n".join(last))
    split, file = json_of(capsys, "eval", "pets"), json_of(capsys, "eval", "pets", "--data", "val.jsonl")
    assert {name: file[name] for name in ("text_sha256", "n_answers", "n_chars", "n_tokens")} == {
        name: split[name] for name in ("text_sha256", "n_answers", "n_chars", "n_tokens")
    }
    assert file["nats_per_char"] == pytest.approx(split["nats_per_char"], abs=0.1)  # nothing stands before the first conversation
    assert file["baselines"] == split["baselines"]
    assert 0 < file["baselines"]["bigram"] < file["baselines"]["unigram"] < 3.5
    Path("val.jsonl").write_text("not json")
    assert minigpt(["eval", "pets", "--data", "val.jsonl"]) == 2
    assert "line 1" in capsys.readouterr().err


def test_memorisation_of_conversations_is_of_their_answers(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    document = json_of(capsys, "eval", "pets", "--memorisation")
    found = document["memorisation"]
    assert found["val_nats_per_char"] == document["nats_per_char"]
    assert abs(found["gap"]) < 0.05  # the animals' answers are the same in both
    assert found["sampled"]["longest_text"].strip() in ANSWERS.values()
    assert found["sample_chars"] <= 10 * len("meow")


def test_a_plain_run_and_a_chat_run_compare_on_a_plain_text_alone(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    Path("some.txt").write_text("0 cat 1 dog 2 cow 3 owl meow woof moo hoot " * 40)
    quick = [*QUICK]
    quick[quick.index("--max-steps") + 1] = "2"
    assert minigpt(["train", "some.txt", "--name", "bookish", *quick]) == 0
    for arguments, says in (
        (["compare", "pets", "bookish"], "give a plain text for both with --data FILE.txt"),
        (["compare", "pets", "bookish", "--data", "chats.jsonl"], "'bookish' cannot read conversations"),
        (["eval", "bookish", "--data", "chats.jsonl"], "'bookish' cannot read conversations"),
    ):
        capsys.readouterr()
        assert minigpt(arguments) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("Error: ")) == ("", 1)
        assert says in err.splitlines()[-1]
    document = json_of(capsys, "compare", "pets", "bookish", "--data", "some.txt")
    assert (document["n_answers"], document["n_chars"]) == (None, len(Path("some.txt").read_text()))


def test_exports_carry_template_and_end_token(store: RunStore, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")
    loaded = checkpoints.load(store.find("pets"))
    huggingface.export(loaded, tmp_path / "hf")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
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
