"""The page of `runs export --format html`: what it computes is what Python computes with the same weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import browser, tiny
from harness.page_runs import MODELS, TEXTS, make_run, offline, opened, press, tokenizer

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.data.chat import prompt_for
from minigpt_cli.evaluation.evaluate_run import dataset_of
from minigpt_cli.evaluation.scoring import Reader, score_split
from minigpt_cli.interchange import javascript
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.contract import END_OF_TEXT
from minigpt_cli.tokenization.pretrained import with_added_tokens


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of every model, and of every tokenizer."""
    folder = tmp_path_factory.mktemp("writer")
    store = RunStore(folder / "runs")
    for name, model in MODELS.items():
        make_run(store, name, model, tokenizer("char"))
    for kind in ("byte", "bpe"):
        make_run(store, kind, MODELS["modern"], tokenizer(kind))
    make_run(store, "table", {"arch": "bigram", "block_size": 32}, tokenizer("char"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with offline(tmp_path_factory.mktemp("profile")) as page:
        yield page


def export(tab: browser.Page, home: Path, name: str, *flags: str) -> None:
    """Export a run and open its page."""
    assert minigpt(["runs", "export", name, "--format", "html", "--out", f"{name}.html", *flags]) == 0
    opened(tab, home / f"{name}.html")


def page_probabilities(tab: browser.Page, text: str) -> tuple[list[int], np.ndarray[Any, Any]]:
    """The ids of a text and the probabilities after each of them, as the page has them."""
    expression = f"""(() => {{ const ids = tokenizer.encode({json.dumps(text)}), V = tokenizer.vocabSize, logits = forward(model, ids);
      return {{ ids, p: ids.map((_, t) => Array.from(probabilities(logits.subarray(t * V, t * V + V)))) }} }})()"""
    found = tab.evaluate(expression)
    return found["ids"], np.array(found["p"])


@browser.needed
@pytest.mark.parametrize("name", [*MODELS, "byte", "bpe"])
def test_the_page_computes_the_probabilities_of_python(home: Path, tab: browser.Page, name: str) -> None:
    export(tab, home, name)
    loaded = checkpoints.load(RunStore(home / "runs").find(name))
    for text in TEXTS:
        ids, p = page_probabilities(tab, text)
        assert ids == loaded.tokenizer.encode(text).tolist()
        with torch.no_grad():
            expected = torch.softmax(loaded.model(torch.tensor([ids])).logits[0].double(), -1).numpy()
        assert np.abs(p - expected).max() < 1e-4, text
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert tab.evaluate("fetch('data:,x').then(() => 'fetched', () => 'refused')") == "refused"  # it could send nothing


@browser.needed
@pytest.mark.parametrize("name", ["classic", "modern", "moe", "bpe"])
def test_greedy_text_of_200_characters_is_that_of_generate(
    home: Path, tab: browser.Page, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export(tab, home, name)
    capsys.readouterr()
    assert minigpt(["generate", name, "--prompt", "To be", "--greedy", "--max-new-tokens", "220", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["samples"][0]["text"]
    tab.evaluate("byId('prompt').value = 'To be'; byId('temperature').value = 0; byId('length').value = 200; byId('start').click()")
    tab.wait("byId('status').textContent.startsWith('Wrote')")
    written = tab.evaluate("byId('text').textContent")
    assert len(written.encode("utf-16-le")) // 2 >= 205
    assert ("To be" + expected).startswith(written)


@browser.needed
def test_attention_stays_inside_a_document_where_the_run_learned_so(home: Path, tab: browser.Page) -> None:
    words = with_added_tokens(tokenizer("char"), [END_OF_TEXT])
    run = make_run(RunStore(home / "runs"), "masked", MODELS["modern"], words, document_mask=True)
    export(tab, home, "masked")
    ids, p = page_probabilities(tab, f"To be{END_OF_TEXT}or not")
    assert ids == words.encode(f"To be{END_OF_TEXT}or not").tolist()
    with torch.no_grad():
        expected = torch.softmax(checkpoints.load(run).model(torch.tensor([ids])).logits[0].double(), -1).numpy()
    assert np.abs(p - expected).max() < 1e-4
    assert np.abs(p[6:] - page_probabilities(tab, f"{END_OF_TEXT}or not")[1][1:]).max() < 1e-6  # "To be" is not seen
    writes = "(() => { const c = new Continuation(model, %s); return Array.from({ length: 9 }, () => c.next({ temperature: 0 })); })()"
    assert tab.evaluate(writes % ids) == tab.evaluate(writes % ids[5:])


@browser.needed
def test_documents_end_as_in_generate_and_another_can_follow(home: Path, tab: browser.Page, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "names.txt").write_text("".join(f"{a}{b}\n" for a in ("anna", "bob", "cleo") for b in "abcdefghijklmnopqrstuvwxyz"), "utf-8")
    assert minigpt(["train", "names.txt", "--documents", "lines", "--name", "names", *tiny.training(60, 60, 32)]) == 0
    export(tab, home, "names")
    capsys.readouterr()
    assert minigpt(["generate", "names", "--prompt", "an", "--greedy", "--max-new-tokens", "200", "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)["samples"][0]
    tab.evaluate("byId('prompt').value = 'an'; byId('temperature').value = 0; byId('length').value = 200; byId('start').click()")
    tab.wait("/^(Wrote|The text)/.test(byId('status').textContent)")
    assert tab.evaluate("byId('text').textContent").rstrip("\n") == "an" + sample["text"][:200]
    if sample["stop_reason"] == "stop":
        assert tab.evaluate("byId('more').textContent") == "Another"


@browser.needed
def test_a_prompt_of_a_run_of_conversations_is_asked_in_their_template(home: Path, tab: browser.Page) -> None:
    (home / "chats.jsonl").write_text(tiny.chats(), "utf-8")
    assert minigpt(["train", "chats.jsonl", "--name", "chats", *tiny.training(4, 4, 16)]) == 0
    export(tab, home, "chats")
    tab.evaluate("byId('prompt').value = '1+2'; begin()")
    words = checkpoints.load(RunStore(home / "runs").find("chats")).tokenizer
    assert tab.evaluate("continuation.ids") == words.encode(prompt_for([("user", "1+2")])).tolist()


@browser.needed
def test_int8_weights_are_those_whose_cost_is_measured(home: Path, tab: browser.Page) -> None:
    export(tab, home, "moe", "--dtype", "int8")
    loaded = checkpoints.load(RunStore(home / "runs").find("moe"))
    ids, p = page_probabilities(tab, TEXTS[2])
    with torch.no_grad():
        exact, page = (
            torch.softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()
            for model in (loaded.model, javascript.rounded(loaded, "int8"))
        )
    assert np.abs(p - page).max() < 1e-4
    assert np.abs(page - exact).max() > 1e-3  # they are other weights
    assert "costs was not measured" in tab.evaluate("document.body.innerText")  # the text of this run is not there


def test_the_page_says_what_its_8_bits_cost_on_the_validation_text(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "tiny.txt").write_text(tiny.text(), "utf-8")
    assert minigpt(["train", "tiny.txt", "--name", "tiny", *tiny.training(30, 30, 32)]) == 0
    capsys.readouterr()
    assert minigpt(["runs", "export", "tiny", "--format", "html", "--out", "tiny.html", "--dtype", "int8"]) == 0
    said = re.search(r"which costs ([+-][\d.]+) nats", (home / "tiny.html").read_text("utf-8"))
    assert said is not None
    loaded = checkpoints.load(run := RunStore(home / "runs").find("tiny"))
    before = score_split(Reader(loaded.model, loaded.tokenizer, 8), dataset_of(run), "val").nats_per_char
    with torch.no_grad():
        for p in loaded.model.parameters():
            step = p.abs().amax(-1, keepdim=True) / 127 if p.dim() == 2 else None
            p.copy_(p.half().float() if step is None else (p / step.clamp(min=1e-30)).round() * step)
    after = score_split(Reader(loaded.model, loaded.tokenizer, 8), dataset_of(run), "val").nats_per_char
    assert float(said[1]) == pytest.approx(after - before, abs=2e-5)


@browser.needed
def test_the_page_is_used_with_keys_alone_and_says_what_it_does(home: Path, tab: browser.Page) -> None:
    export(tab, home, "modern")

    for _ in range(20):
        if tab.evaluate("document.activeElement.id") == "prompt":
            break
        press(tab, "Tab", 9)
    tab.evaluate("byId('prompt').value = ''")
    tab.call("Input.insertText", text="To be")
    press(tab, "Enter", 13, modifiers=2)
    tab.wait("byId('status').textContent.startsWith('Wrote 500 ')")
    assert tab.evaluate("byId('text').textContent.startsWith('To be')")
    tab.evaluate("byId('prompt').value = 'what is Ω?'; byId('form').requestSubmit()")
    assert "never seen Ω" in tab.evaluate("byId('status').textContent")
    tab.evaluate("byId('copy').click()")
    tab.wait("/^(Copied|Selected)/.test(byId('status').textContent)")
    tab.evaluate("byId('more').click(); byId('stop').click()")
    tab.wait("byId('status').textContent.startsWith('Stopped')")
    assert tab.complaints == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["table", "--out", "x.html"], "classic, modern and moe, not --arch bigram"),
        (["modern", "--out", "x"], "does not end in .html"),
        (["modern", "--out", "none/x.html"], "make it first"),
        (["modern", "--out", "x.html", "--dtype", "q8_0"], "no --dtype q8_0: f16, int8"),
    ],
)
def test_what_cannot_be_a_page_is_one_line_and_nothing_is_written(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert minigpt(["runs", "export", *arguments, "--format", "html"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert not (home / "x.html").exists()


def test_a_model_that_is_too_large_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(javascript, "MOST_PARAMS", 1000)
    assert minigpt(["runs", "export", "modern", "--format", "html", "--out", "x.html"]) == 2
    assert "too many for a page" in capsys.readouterr().err


def test_weights_and_tokenizers_that_a_page_cannot_hold_are_refused(home: Path) -> None:
    from minigpt_cli.errors import UsageError
    from minigpt_cli.tokenization.pretrained import load_tokenizer

    loaded = checkpoints.load(RunStore(home / "runs").find("bpe"))
    spec = json.loads(loaded.tokenizer.to_json())
    spec["pre_tokenizer"]["use_regex"] = False
    with pytest.raises(UsageError, match="cannot cut text"):
        javascript.packed_tokenizer(checkpoints.Loaded(loaded.model, load_tokenizer(json.dumps(spec)), loaded.config, loaded.record, 1))
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(1e5)
    with pytest.raises(UsageError, match="more than the 65504"):
        javascript.packed(loaded, "f16")
