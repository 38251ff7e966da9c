"""The page of `runs look --html`: what it computes, without any part too, is what Python computes with the same weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from harness import browser, tiny
from harness.page_runs import MODELS, TEXTS, make_run, offline, opened, press, tokenizer

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.config import REMOVABLE
from minigpt_cli.display.pages.look import LookPage, code_lines, look_page
from minigpt_cli.evaluation.evaluate_run import dataset_of
from minigpt_cli.evaluation.inside import Inside, PartCost
from minigpt_cli.evaluation.sample import sample_of
from minigpt_cli.generation.sampling import Sampling, filtered, probabilities
from minigpt_cli.interchange import javascript
from minigpt_cli.models.plain import mean_values, removable
from minigpt_cli.models.plain import opened as taken_out
from minigpt_cli.runstore.store import RunStore

ARCHS = ["classic", "modern-grouped", "moe-norm"]
TEXT = TEXTS[2]


class Looked:
    """A run, its model, and its page."""

    def __init__(self, folder: Path, name: str, kind: str = "char", **model: Any) -> None:
        words = tokenizer(kind)
        self.loaded = checkpoints.load(make_run(RunStore(folder / "runs"), name, MODELS[name] | model, words))
        self.model, self.page = self.loaded.model, folder / f"{name}.html"
        self.sample = words.encode("".join(TEXTS)[:101]).astype(int)
        watch: dict[str, torch.Tensor] = {}
        with torch.no_grad(), taken_out(self.model, watch=watch):
            self.model(torch.from_numpy(self.sample[:32])[None])
        document = javascript.packed(self.loaded, "f16")
        document["means"] = {key: value.flatten().tolist() for key, value in mean_values(watch).items()}
        self.means = {key: torch.tensor(document["means"][key]).view_as(value) for key, value in mean_values(watch).items()}
        names = [*removable(self.model), "positions"]
        parts = [PartCost(part=n, delta_nats_per_char=0.1, ci95=(0, 0.2), p_holm=0.1, measurable=n != "head 0.0") for n in names]
        inside = Inside(n_chars=1, nats_per_char=1, ci95=(1, 1), text_sha256="", parts=parts, context=[], kinds=[], positions=[])
        counted = [1] * 100
        sample = {"ids": self.sample.tolist(), "counted": counted, "chars": 100}
        page = look_page(LookPage(self.loaded.record, document, (), (0,), TEXT, sample, inside))
        self.page.write_text(page, "utf-8")

    @torch.no_grad()
    def probabilities(self, ids: list[int], *without: str) -> npt.NDArray[np.float64]:
        with taken_out(self.model, without=without, means=self.means):
            return torch.softmax(self.model(torch.tensor([ids])).logits[0].double(), -1).numpy()

    def loss(self, *without: str) -> float:
        nats = 0.0
        for at in range(0, 100, 32):
            window = self.sample[at : at + 33]
            p = self.probabilities(window[:-1].tolist(), *without)
            nats -= np.log(p[np.arange(len(p)), window[1:]]).sum()
        return nats / 100


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Looked]:
    return {name: Looked(tmp_path_factory.mktemp("look"), name) for name in ARCHS}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with offline(tmp_path_factory.mktemp("profile")) as page:
        yield page


@browser.needed
@pytest.mark.parametrize("name", ARCHS)
def test_every_switch_is_the_ablation_of_python(looked: dict[str, Looked], tab: browser.Page, name: str) -> None:
    one = looked[name]
    opened(tab, one.page)
    switches = tab.evaluate("[...document.querySelectorAll('[data-part]')].map((box) => box.dataset.part)")
    assert sorted(switches) == sorted([*REMOVABLE, *removable(one.model)])
    ids = one.loaded.tokenizer.encode(TEXT).tolist()
    for without in [*([part] for part in switches), ["head 0.1", "mlp 1"], ["mask", "positions"], ["layer 0", "scale", "head 1.0"]]:
        p = tab.evaluate(f"""(() => {{ const logits = forward(model, {ids}, {{ without: new Set({json.dumps(without)}) }});
          return {ids}.map((_, t) => Array.from(probabilities(logits.subarray(t * V, t * V + V)))) }})()""")
        assert np.abs(np.array(p) - one.probabilities(ids, *without)).max() < 1e-4, without


@browser.needed
def test_the_loss_follows_the_switches(looked: dict[str, Looked], tab: browser.Page) -> None:
    one = looked["modern-grouped"]
    opened(tab, one.page)
    loss = "Number(byId('loss').dataset.loss ?? 0)"
    assert tab.wait(loss) == pytest.approx(one.loss(), abs=1e-4)
    tab.evaluate("document.querySelector('[data-part=\"head 0.1\"]').click()")
    assert tab.wait(loss) == pytest.approx(one.loss("head 0.1"), abs=1e-4)
    tab.evaluate("document.querySelector('[data-part=\"mask\"]').click()")
    assert tab.wait(loss) == pytest.approx(one.loss("head 0.1", "mask"), abs=1e-4)
    assert "without head 0.1, mask" in tab.evaluate("byId('loss').textContent")
    frames = tab.evaluate("[...document.querySelectorAll('.head button')].map((b) => getComputedStyle(b).borderLeftColor)")
    assert frames[0] != frames[1]  # no measurable effect: grey
    assert len(set(frames[1:])) == 1
    assert tab.complaints == []


@browser.needed
def test_what_is_typed_with_keys_is_read_tinted_and_continued(looked: dict[str, Looked], tab: browser.Page) -> None:
    one = looked["moe-norm"]
    opened(tab, one.page)
    for _ in range(9):
        if tab.evaluate("document.activeElement.id") == "typed":
            break
        press(tab, "Tab", 9)
    press(tab, "a", 65, modifiers=2, commands=["selectAll"])
    tab.call("Input.insertText", text="a🙂b Ω to")
    assert tab.evaluate("byId('typed').value") == "a🙂b  to"
    assert "never seen Ω" in tab.evaluate("byId('said').textContent")
    ids = one.loaded.tokenizer.encode("a🙂b  to").tolist()
    expected = one.probabilities(ids)
    tints = tab.evaluate("[...byId('tints').children].map((s) => [s.textContent, Number(s.style.getPropertyValue('--t'))])")
    assert [text for text, _ in tints] == ["a", "🙂", "b", " ", " ", "t", "o"]
    surprise = [0.0, *np.clip(-np.log10(expected[np.arange(len(ids) - 1), ids[1:]]) / 3, 0, 1)]
    assert [strength for _, strength in tints] == pytest.approx(surprise, abs=2e-3)
    shown = "[...document.querySelectorAll('#next [role=row]')].slice(1).map((r) => [...r.children].slice(0, 3).map((s) => s.textContent))"
    top = np.argsort(-expected[-1])[:10]
    assert [float(before) for _, before, _ in tab.evaluate(shown)] == pytest.approx(expected[-1][top].tolist(), abs=6e-4)
    press(tab, "ArrowLeft", 37)
    tab.wait("byId('after').textContent === 't'")
    assert ["o" in row[0] for row in tab.evaluate(shown)].count(True) >= 1
    tab.evaluate("byId('temperature').value = 0; byId('draw_many').click()")
    tab.wait("look.ids.length === LIMIT")
    written = one.loaded.tokenizer.encode(tab.evaluate("byId('typed').value")).tolist()
    greedy = one.probabilities(written[:31]).argmax(-1)
    assert written[7:] == greedy[6:].tolist()
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []


@browser.needed
def test_settings_change_the_distribution_as_in_sampling(looked: dict[str, Looked], tab: browser.Page) -> None:
    opened(tab, looked["classic"].page)
    draw = np.random.default_rng(3)
    for _ in range(25):
        logits = np.round(draw.normal(size=40) * 3, 2)  # with ties
        settings = Sampling(
            round(draw.uniform(0.1, 2), 2), int(draw.integers(0, 45)), round(draw.uniform(0.1, 1), 2), round(draw.uniform(0, 0.3), 2)
        )
        values = {key: getattr(settings, key) for key in ("temperature", "top_k", "top_p", "min_p")}
        found = tab.evaluate(f"Array.from(probabilities(filtered({logits.tolist()}, {json.dumps(values)})))")
        assert found == pytest.approx(probabilities(filtered(logits[None], settings))[0].tolist(), abs=1e-9), values


@browser.needed
@pytest.mark.parametrize("name", ARCHS)
def test_arrow_keys_walk_all_steps_with_the_numbers_of_the_model(looked: dict[str, Looked], tab: browser.Page, name: str) -> None:
    one = looked[name]
    opened(tab, one.page)
    tab.evaluate("byId('steps').focus()")
    press(tab, "ArrowDown", 40)
    titles = []
    watch: dict[str, torch.Tensor] = {}
    with torch.no_grad(), taken_out(one.model, watch=watch):
        one.model(torch.tensor([one.loaded.tokenizer.encode(TEXT).tolist()]))
    for _ in range(20):
        titles.append(tab.evaluate("byId('station').querySelector('h3').firstChild.textContent"))
        if titles[-1] == "Out":
            shown = tab.evaluate("[...byId('station').querySelectorAll('.numbers .tint')].map((s) => Number(s.textContent))")
            assert shown == pytest.approx(watch["1.attention_out"][0, -1, :8].tolist(), abs=6e-2, rel=6e-2)
        assert tab.evaluate("byId('station').querySelectorAll('pre').length") >= 1
        if titles[-1] == "Head":
            break
        press(tab, "ArrowRight", 39)
    assert len(titles) == (13 if name == "classic" else 14)
    weights = tab.evaluate("Array.from(weightsOf(1, 2))")
    assert weights == pytest.approx(watch["1.weights"][0, 2, -1].tolist(), abs=1e-5)
    assert tab.complaints == []


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_the_lines_of_every_step_stand_in_the_package(name: str, kind: str) -> None:
    model = MODELS[name]
    found = code_lines({"rms_norm": model["arch"] != "classic", "n_experts": 4 * (model["arch"] == "moe")}, kind)
    assert len(found) == 14
    assert all(place["text"].strip() for places in found.values() for place in places)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the run `names`, trained on documents, and its page."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "names.txt").write_text("".join(f"{a}{b}\n" for a in ("anna", "bob", "clé") for b in "abcdefghijklmnopqrstuvwxyz"), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert minigpt(["train", "names.txt", "--documents", "lines", "--name", "names", *tiny.training(30, 30, 32)]) == 0
        assert minigpt(["runs", "look", "names", "--html", "look.html"]) == 0
        yield folder


@browser.needed
def test_the_page_of_a_run_of_documents_has_its_loss_and_measurements(
    home: Path, tab: browser.Page, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(tab, home / "look.html")
    loaded = checkpoints.load(run := RunStore(home / "runs").find("names"))
    sample = sample_of(dataset_of(run), 8)
    model, nats, chars = javascript.rounded(loaded, "f16"), 0.0, len(sample.text.decode())
    assert chars <= 512  # the whole sample is on the page
    for at in range(0, len(sample.is_text), 8):
        window, counted = sample.stream[at : at + 9], sample.is_text[at : at + 8]
        with torch.no_grad():
            p = torch.softmax(model(torch.from_numpy(window[:-1])[None]).logits[0].double(), -1).numpy()
        nats -= (np.log(p[np.arange(len(p)), window[1:]]) * counted).sum()
    assert tab.wait("Number(byId('loss').dataset.loss ?? 0)") == pytest.approx(nats / chars, abs=1e-4)
    assert tab.evaluate("nameOf(look.ids[0])") == "■"  # every text follows the end of a document
    assert tab.evaluate("byId('typed').value") in sample.text.decode()
    capsys.readouterr()
    assert minigpt(["runs", "look", "names", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shown = tab.evaluate("[...document.querySelectorAll('section')].filter((s) => /context it uses/.test(s.textContent))[0].innerText")
    assert all(f"{each['nats_per_char']:.3f}" in shown for each in found["context"])
    measured = {part["part"]: part["delta_nats_per_char"] for part in found["parts"]}
    assert tab.evaluate("Object.fromEntries(data.parts.map((part) => [part.part, part.cost]))") == pytest.approx(measured)
    assert tab.complaints == []


@browser.needed
def test_the_page_of_a_run_of_conversations_begins_with_a_question(home: Path, tab: browser.Page) -> None:
    (home / "chats.jsonl").write_text(tiny.chats(), "utf-8")
    assert minigpt(["train", "chats.jsonl", "--name", "chats", *tiny.training(4, 4, 16)]) == 0
    assert minigpt(["runs", "look", "chats", "--html", "chats.html"]) == 0
    opened(tab, home / "chats.html")
    words = checkpoints.load(RunStore(home / "runs").find("chats")).tokenizer
    text = tab.evaluate("byId('typed').value")
    assert text.startswith("<|user|>")
    assert text.endswith("<|end|><|assistant|>")  # as added tokens: their characters alone are not in the vocabulary
    assert tab.evaluate("look.ids") == words.encode(text).tolist()
    assert tab.complaints == []


@pytest.mark.parametrize(
    ("arguments", "limit", "says"),
    [(["--html", "look.txt"], 10**7, "does not end in .html"), (["--html", "no/look.html"], 10**7, "make it first"),
     (["--html", "new.html"], 1000, "a page to look through holds")],
)  # fmt: skip
def test_what_cannot_be_looked_through_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], limit: int, says: str
) -> None:
    monkeypatch.setattr(javascript, "F16_PARAMS", limit)
    assert minigpt(["runs", "look", "names", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert not (home / "new.html").exists()


@browser.needed
def test_a_keystroke_is_shown_soon(tmp_path: Path, tab: browser.Page) -> None:
    one = Looked(tmp_path, "modern", n_layer=4, n_embd=128, block_size=128)
    opened(tab, one.page)
    tab.wait("byId('loss').dataset.loss")
    tab.evaluate("byId('typed').value = 'To be, or not to be '.repeat(4).slice(0, 63); read(); read()")
    began = time.monotonic()
    tab.evaluate("byId('typed').value += 'a'; read(); new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    assert time.monotonic() - began < 3  # 150 ms where nothing else runs: see RESULTS.md
    assert tab.evaluate("look.ids.length") == 64
