"""What the README and the pages behind it promise is true: their commands run, the table of presets is the presets', the tests named exist.

Commands run in order in one folder, on a tiny text and, through the environment, with a tiny model. Those that serve, watch
or ask go as far as their flags are read.
"""

from __future__ import annotations

import json
import re
import shlex
import string
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from harness import samples
from harness.pages import DOCS, ROOT, TEXTS, anchors, parsed

from minigpt_cli import cli
from minigpt_cli.config import RunConfig
from minigpt_cli.presets import catalog

README = TEXTS[ROOT / "README.md"]
TINY = {
    "N_LAYER": 1, "N_HEAD": 2, "N_EMBD": 16, "BLOCK_SIZE": 16, "BATCH_SIZE": 4, "MAX_STEPS": 4, "EVAL_EVERY": 2, "EVAL_ITERS": 1,
    "DEVICE": "cpu", "PRECISION": "fp32", "ATTENTION": "plain", "COMPILE": "off", "THREADS": 1,
}  # fmt: skip
STAND_INS = {"tinyshakespeare": "./tinyshakespeare", "400": "4", "800": "6"}  # a text that needs no network; fewer steps
LATER = {"--serve", "-i", "--search", "watch", "--log", "--push"}  # these wait for somebody, or need an extra or a login
EXTRAS = {"--quantize-base": "torchao", "gguf": "gguf", "onnx": "onnxscript"}  # run where the extra is installed
ELSEWHERE = {"cat", "pip", "pytest", "torchrun", "llama-cli", "ollama", "tensorboard", "cd", "curl", "export", "git"}


def commands() -> list[str]:
    """Every command line of the pages' `sh` blocks, the README's first, those joined by && apart; each once."""
    blocks = [block for text in TEXTS.values() for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.sub(r"(^|\s)#\s.*", "", line).split("&&")]
    return list(dict.fromkeys(filter(None, parts)))


def sizes(model: Any) -> str:
    return "table" if model.arch == "bigram" else f"{model.n_layer} × {model.n_embd}, {model.n_head} heads"


def preset_table() -> str:
    """The table of presets, from the presets."""
    rows = ["| preset | what it is | architecture | layers × width | block | batch | steps | optimizer, rate |", "|" + "---|" * 8]
    for name in catalog.preset_names():
        settings = catalog.read_preset(name)
        c = RunConfig.model_validate(settings | {"model": {"arch": "modern"} | settings.get("model", {})})
        batch = f"{c.optim.batch_size}" + (f" × {c.optim.grad_accum}" if c.optim.grad_accum > 1 else "")
        steps = f"{c.optim.max_steps:,}" if c.optim.max_steps else f"{c.optim.time_budget:g} s"
        rate = f"{c.optim.optimizer} {c.optim.muon_lr if c.optim.optimizer == 'muon' else c.optim.lr:g}"
        what = catalog.preset_summary(name).rstrip(".")
        rows.append(f"| `{name}` | {what} | {c.model.arch} | {sizes(c.model)} | {c.model.block_size} | {batch} | {steps} | {rate} |")
    return "\n".join(rows)


def test_the_table_of_presets_is_current() -> None:
    assert preset_table() in TEXTS[DOCS / "presets.md"], "the table should be:\n" + preset_table()


def test_the_tests_that_prove_the_promises_exist() -> None:
    named = [found for text in TEXTS.values() for found in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)]
    assert len(named) >= 10
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text("utf-8"), f"{path}::{test}"


def test_links_and_pictures_lead_somewhere() -> None:
    for page, text in TEXTS.items():
        for target, anchor in re.findall(r"(?:\]\(|src=\")([^)#:\"]*)(?:#([^)\"]+))?[)\"]", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
            linked = page if not target else (page.parent / target).resolve()
            assert not anchor or anchor in anchors(TEXTS[linked]), f"{page.name}: {target}#{anchor}"
    assert all(f"docs/{page.name}" in README for page in DOCS.glob("*.md"))  # each page can be found from the front door


def test_the_readme_names_the_textbook_in_full() -> None:
    assert {path.name for path in (ROOT / "minigpt_cli" / "models").glob("[a-z]*.py")} == set(re.findall(r"`(\w+\.py)`", README))


def test_ci_runs_the_test_command_of_the_readme() -> None:
    install, run = re.search(r"^(pip install -e \S+) && (pytest)$", README, re.M).groups()  # type: ignore[union-attr]
    ci = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert run in ci
    assert any(line.startswith("export MINIGPT_NEED_BROWSER=1") for line in ci[: ci.index(run)])  # no page goes untested
    assert any(line.startswith("pip install") and line.endswith(install.removeprefix("pip install")) for line in ci)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the texts that the pages speak of, and an environment that makes models tiny."""
    monkeypatch.chdir(tmp_path)
    for name, value in TINY.items():
        monkeypatch.setenv(f"MINIGPT_{name}", str(value))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = "".join(f"{string.ascii_letters}?. ROMEO: Once upon {i * i % 97} days to be,\nor not: {i % 7}!\n" for i in range(80))
    (tmp_path / "notes").mkdir()
    (tmp_path / "poems").mkdir()
    (tmp_path / "7b" / "anna" / "runs").mkdir(parents=True)
    for name in ("tinyshakespeare", "notes.txt", "sonnets.txt", "notes/first.md", "book.txt", "last.txt"):
        (tmp_path / name).write_text(text)
    (tmp_path / "names.txt").write_text("".join(f"{first}{last}\n" for first in ("Emma", "Ada", "Olivia") for last in string.ascii_letters))
    (tmp_path / "poems" / "first.json").write_text(json.dumps([{"title": f"{i}", "paragraphs": [text[i:], text[:i]]} for i in range(30)]))
    (tmp_path / "asks.txt").write_text("Once\nto be\n")
    (tmp_path / "old.txt").write_bytes("Das Mädchen geht über die Brücke. ".encode("cp1252") * 50)
    (tmp_path / "letters.jsonl").write_bytes(samples.jsonl([{"text": text[i:]} for i in range(20)]))
    (tmp_path / "book.epub").write_bytes(samples.epub({"page.xhtml": text}))
    rows = [{"prompt": f"{i}?", "completion": "Four."} for i in range(200)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_commands_run_in_their_order(desk: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for line in commands():
        words = shlex.split(line)
        if words[0] == "torchrun":
            parsed(words[words.index("minigpt_cli") + 1 :])
        elif words[0] != "minigpt":
            assert words[0] in ELSEWHERE, line
        elif (
            LATER & set(words)
            or any(word.startswith(("https:", "hf:")) for word in words)
            or any(flag in words and find_spec(module) is None for flag, module in EXTRAS.items())
        ):
            parsed(words[1:])
        else:
            words = [STAND_INS.get(word, word) for word in words]
            with monkeypatch.context() as patch:
                for name in ("N_LAYER", "N_HEAD", "N_EMBD") if "bigram" in words else ():
                    patch.delenv(f"MINIGPT_{name}")  # a table has none
                code = cli.run(words[1:])
            assert code == 0, f"{line}: {capfd.readouterr().err[-500:]}"
