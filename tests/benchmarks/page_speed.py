"""How fast the pages that hold a model are, in a real Chromium: a keystroke on the page of `runs look`, and characters a second of the page
of `runs export --format html`, also with the processor slowed down fourfold as Chromium's tools do for a middling phone.

    PYTHONPATH=tests python tests/benchmarks/page_speed.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from harness.page_runs import make_run, offline, opened, tokenizer

from minigpt_cli import checkpoints
from minigpt_cli.cli import run as minigpt
from minigpt_cli.display.pages.look import LookPage, look_page
from minigpt_cli.evaluation.inside import Inside
from minigpt_cli.interchange import javascript
from minigpt_cli.runstore.store import RunStore

SMALL = {"arch": "modern", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128}
LARGE = {"arch": "modern", "n_layer": 10, "n_head": 8, "n_embd": 512, "block_size": 256}
KEYSTROKE = """(async () => { const box = byId('typed'), times = [];
  for (let i = 0; i < 30; i++) {
    box.value = 'To be, or not to be '.repeat(4).slice(i, i + 63);
    const began = performance.now();
    box.value += 'a'; read(); await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - began);
  } return times.sort((a, b) => a - b); })()"""
WRITING = """(() => { const written = new Continuation(model, tokenizer.encode('To be')), times = [];
  for (let i = 0; i < 60; i++) {
    const began = performance.now();
    written.next({ temperature: 0.8, top_k: 50 });
    times.push(performance.now() - began);
  }
  return times.sort((a, b) => a - b); })()"""


def of_times(times: list[float]) -> dict[str, float]:
    """The shortest, which other programs disturb least, and the median, ms."""
    return {"shortest_ms": round(times[0], 2), "median_ms": round(times[len(times) // 2], 2)}


def main() -> None:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), RunStore(Path(name) / "runs")
        small = make_run(store, "small", SMALL, tokenizer("char"))
        make_run(store, "large", LARGE, tokenizer("char"))
        document = javascript.packed(checkpoints.load(small), "f16")
        no_text = {"ids": [0], "counted": [], "chars": 0}
        nothing = Inside(n_chars=1, nats_per_char=1, ci95=(1, 1), text_sha256="", parts=[], context=[], kinds=[], positions=[])
        (folder / "look.html").write_text(look_page(LookPage(small.record, document, (), (0,), "a", no_text, nothing)), "utf-8")
        with offline(folder / "profile") as tab:
            opened(tab, folder / "look.html")
            found["keystroke, 64 tokens, 4 x 128"] = of_times(tab.evaluate(KEYSTROKE))
            for run in ("small", "large"):
                out = folder / f"{run}.html"
                assert minigpt(["runs", "export", run, "--format", "html", "--out", str(out), "--runs-dir", str(store.dir)]) == 0
                opened(tab, out)
                for slowed in (1, 4):
                    tab.call("Emulation.setCPUThrottlingRate", rate=slowed)
                    found[f"one character, {run}, slowed {slowed} times"] = of_times(tab.evaluate(WRITING))
                tab.call("Emulation.setCPUThrottlingRate", rate=1)
                found[f"{run}: size of the page, MB"] = round(out.stat().st_size / 1e6, 1)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
