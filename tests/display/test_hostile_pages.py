"""Every page that minigpt writes or serves, in a real browser, over runs in which every text is hostile.

No script of theirs runs, nothing is fetched, no element, handler or link of theirs comes to be, and the browser complains of
nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from harness import browser

from minigpt_cli.cli import run as minigpt
from minigpt_cli.commands.serve import build_app
from minigpt_cli.events import Sampled
from minigpt_cli.runstore.directory import CONFIG, Run
from minigpt_cli.runstore.records import Annotations, RunRecord
from minigpt_cli.runstore.store import RunStore

pytestmark = browser.needed

HOSTILE = [
    "</script><script>window.broken=1</script>",
    "</title></style></textarea></pre><img src=http://evil.example/x onerror=window.broken=1>",
    "<svg onload=window.broken=1><a href='javascript:window.broken=1'>x</a></svg>",
    "\" onmouseover=window.broken=1 x='\" style='background:url(http://evil.example/y)'",
    "<!--<script>",
    "]]>{{7*7}}${window.broken=1}`;window.broken=1//<!--DATA-->",
    "\u202egnp.exe\u2066\x1b[2J\x00\u2028\u2029\x9b31m\\u003cscript>\\x3c",
]
ALL = "".join(HOSTILE)
NAMES = ["<svg onload=window.broken=1>'\"&", "<img src=x onerror=window.broken=1>${1}"]
TINY = shlex.split(
    """
    --arch modern --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 8 --max-steps 40 --eval-every 20 --eval-iters 0
    --device cpu --precision fp32 --attention plain --compile off --seed 1 --time-limit 0
"""
)


def tokenizer_json(alphabet: str) -> str:
    """Characters, and every hostile text as a token of its own."""
    from minigpt_cli.tokenization.char import CharTokenizer

    own = CharTokenizer([ord(c) for c in sorted(set(alphabet))])
    spec = json.loads(own.to_json())
    spec["added_tokens"] += [{"id": own.vocab_size + i, "content": text, "special": True} for i, text in enumerate(HOSTILE)]
    return json.dumps(spec)


def poisoned(value: Any) -> Any:
    """`value` with every free text in it hostile."""
    if isinstance(value, str):
        return ALL
    if isinstance(value, list):
        return [*map(poisoned, value), ALL]
    return {ALL: ALL} | {key: poisoned(item) for key, item in value.items()} if isinstance(value, dict) else value


def poison(run: Run, name: str) -> None:
    """Make every text of a run hostile, as whoever wrote it may, with checksums that agree."""
    content = run.record.model_dump(mode="json")
    for field in ("argv", "versions", "git_commit", "preset", "device", "device_name", "tokenizer", "group"):
        content[field] = poisoned(content[field] if content[field] is not None else "")
    content["corpus"] |= {"label": ALL} | ({"dataset_dir": ALL} if name == NAMES[0] else {})  # the other is looked into, on its text
    content["base"] = {"run": ALL, "sha256": ALL}
    content["resume_exact_history"] = [{"step": 1, "exact": False, "reasons": [ALL]}]
    config = run.config.model_dump(mode="json")
    config["data"] |= {"source": ALL, "tokenizer": ALL}
    config["lora"]["lora_targets"] = ALL[:200]
    data = json.dumps(config).encode()
    content["files"][CONFIG] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    run.file(CONFIG).write_bytes(data)
    run.file("run.json").write_text(RunRecord.model_validate(content).to_json(), "utf-8")
    for step in (20, 40):
        run.append(Sampled(run=ALL, step=step, prompt=ALL, text=ALL))
    run.annotate(lambda _: Annotations(tags=[text[:60] for text in HOSTILE], note=ALL))
    run.dir.rename(run.dir.with_name(name))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two hostile runs and every page of them."""
    folder = tmp_path_factory.mktemp("hostile")
    text = "".join(f"{word} " for _ in range(60) for word in ("to be or", *HOSTILE))
    (folder / "text.txt").write_text(text, "utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json(text), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert minigpt(["train", "text.txt", "--name", "a", "--tokenizer", "tokenizer.json", *TINY]) == 0
        shutil.copytree("runs/a", "runs/b")
        for old, name in zip("ab", NAMES, strict=True):
            poison(RunStore("runs").find(old), name)
        yield folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


# What a page holds that only a hostile text could have put there.
FOREIGN = """[...document.querySelectorAll('*')].filter((e) =>
  ['IMG', 'A', 'IFRAME', 'OBJECT', 'EMBED', 'BASE', 'FORM'].includes(e.tagName.toUpperCase()) && e.id !== 'form'
  || [...e.attributes].some((a) => a.name.startsWith('on') || /javascript:|evil/i.test(a.value) && a.name !== 'aria-label'))
  .map((e) => e.outerHTML.slice(0, 200))"""


def is_harmless(tab: browser.Page, scripts: int, *own: str) -> None:
    """Assert that the open page runs nothing, fetches nothing and holds nothing that is not its own."""
    tab.evaluate("document.querySelectorAll('*').forEach((e) => ['mouseover', 'focus', 'click'].forEach("
                 "(k) => e.id === 'start' || e.dispatchEvent(new Event(k, {bubbles: true}))))")  # fmt: skip
    time.sleep(0.05)
    assert tab.evaluate("typeof window.broken") == "undefined"
    assert tab.evaluate(FOREIGN) == []
    assert tab.evaluate("document.scripts.length") == scripts
    assert [url for url in tab.requests if not url.startswith(("data:", *own))] == []
    assert tab.complaints == []


def opened(tab: browser.Page, path: Path) -> None:
    tab.requests.clear(), tab.complaints.clear()
    tab.open(path.as_uri())
    tab.wait(f"location.href === {path.as_uri()!r} && document.readyState === 'complete'")


COMMANDS = {
    "view.html": (["generate", NAMES[0], "--prompt", ALL, "--seed", "1", "--max-new-tokens", "60", "--html"], 2),
    "surprise.html": (["eval", NAMES[0], "--text", ALL, "--html"], 2),
    "comparison.html": (["compare", *NAMES, "--prompt", ALL, "--plot"], 0),
    "report.html": (["runs", "plot", NAMES[0], "--html"], 2),
    "reports.html": (["runs", "plot", *NAMES, "--html"], 2),
    "look.html": (["runs", "look", NAMES[1], "--text", ALL, "--html"], 2),
    "friend.html": (["runs", "export", NAMES[0], "--format", "html", "--out"], 2),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_written_page_of_hostile_runs_is_harmless(home: Path, tab: browser.Page, name: str) -> None:
    command, scripts = COMMANDS[name]
    assert minigpt([*command, name]) == 0
    opened(tab, home / name)
    is_harmless(tab, scripts, home.as_uri())
    assert "window.broken=1" in tab.evaluate("document.body.innerText")  # it was there to run


# The size in pixels of the smallest text of the charts, and the labels that stick out of their chart.
SMALLEST_TEXT = (
    "Math.min(99, ...[...document.querySelectorAll('svg text')].map((t) => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"
)
CLIPPED_LABELS = """[...document.querySelectorAll('svg text')].filter((t) => t.getClientRects().length).filter((t) => {
  const label = t.getBoundingClientRect(), chart = t.ownerSVGElement.getBoundingClientRect();
  return label.left < chart.left - 1 || label.right > chart.right + 1 || label.bottom > chart.bottom + 1; }).map((t) => t.textContent)"""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_written_page_fits_a_phone_in_both_themes(home: Path, tab: browser.Page, name: str) -> None:
    assert minigpt([*COMMANDS[name][0], name]) == 0
    grounds = set()
    with tab.phone():
        for theme in ("light", "dark"):
            tab.theme(theme)
            opened(tab, home / name)
            assert tab.evaluate("document.documentElement.scrollWidth") <= 360
            assert tab.evaluate(SMALLEST_TEXT) >= 12
            assert tab.evaluate(CLIPPED_LABELS) == []
            grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


@pytest.mark.parametrize("command", [["compare", *NAMES, "--plot"], ["runs", "plot", *NAMES, "--out"]])
def test_a_picture_of_hostile_runs_is_harmless(home: Path, tab: browser.Page, command: list[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert minigpt([*command, "picture.svg"]) == 0
    opened(tab, home / "picture.svg")
    is_harmless(tab, 0, home.as_uri())


@pytest.fixture
def address(home: Path) -> Iterator[str]:
    """A server over the hostile runs."""
    app = build_app(RunStore(home / "runs"), api_key=None, engine="torch", only=None, ckpt="best", local_only=True)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def test_the_served_page_of_hostile_runs_is_harmless(address: str, tab: browser.Page) -> None:
    tab.requests.clear(), tab.complaints.clear()
    tab.open(address)
    tab.wait("document.body && document.body.hasAttribute('data-ready')")
    assert tab.evaluate("document.querySelector('#left select').value") == NAMES[0]
    tab.evaluate(f"document.getElementById('prompt').value = {json.dumps(ALL)}")
    tab.evaluate("document.getElementById('max_tokens').value = 60; document.getElementById('start').click()")
    tab.wait("document.querySelector('#left .figures').textContent.includes('all written')")
    assert "window.broken=1" in tab.evaluate("document.querySelector('#left .text').textContent")
    is_harmless(tab, 1, address)  # which presses every button, also the one that begins anew
    assert not set(tab.evaluate("document.body.innerText")) & set("\x1b\x00\x9b\u202e")
    with tab.phone():
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
