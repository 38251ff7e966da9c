"""Whatever a run directory says of itself, nothing in it reaches a terminal, a page, a table or an export raw."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from minigpt_cli import cli as cli_module
from minigpt_cli import escaping
from minigpt_cli.runstore.records import Annotations, Base, Corpus, Session, SplitRecord
from minigpt_cli.runstore.store import RunStore

EVIL = (
    "\x1b]0;pwned\x07\x1b[31mRED\x9b2J\u202egnp\u2066<script>alert(1)</script>|`x` [x](javascript:alert(1)) ![i](http://evil/i.png)"
    "\r\n---\n# H\x00 Z" + "\u0301" * 60 + " </title> </style> -->"
)
FORMULA = "=cmd|' /C calc'!A0"
NAME = "e\x1b]0;p\x07\u202e<b>'\"|`=1`\n# H"

RAW = re.compile(r"\x1b\]|\x07|\x9b|\x00|\u202e|\u2066|\x1b\[31mRED|\u0301{5}")
MARKUP = re.compile(r"<script>alert|<b>'|</title> </style>")
ACTIVE = re.compile(r"(?<!\\)<script>|(?<!\\)<b>|(?<!\\)\[x\]\(|(?<!\\)!\[i|^---$\n# H|^# H", re.MULTILINE)

TABLES = ["runs list", "runs leaderboard", "runs leaderboard --fold-seeds", "runs leaderboard --budget tokens"]
READERS = [
    *TABLES, "runs show EVIL", "runs diff EVIL first", "runs watch EVIL first --once", "runs plot EVIL first", "runs note EVIL",
    "runs tag EVIL more", "runs verify EVIL", "eval EVIL", "compare EVIL first", "compare EVIL first --prompt To",
    "generate EVIL --prompt To --max-new-tokens 3 --seed 1", "generate EVIL --prompt To --max-new-tokens 3 --seed 1 --probs",
    "generate EVIL --sweep temperature=0.5,1 --max-new-tokens 3 --seed 1", "runs import EVIL --name copy", "runs show EVI",
]  # fmt: skip


@pytest.fixture
def evil(trained: Path) -> Path:
    """Beside the run `first` one of the same weights, whose every free text is hostile, and whose folder is named so too."""
    store = RunStore("runs")
    run = store.find("first")
    run.annotate(lambda _: Annotations(tags=["first"]))
    os.rename(run.dir, "runs/" + NAME)
    (Path("runs") / NAME / "annotations.json").unlink()
    cli_module.run(["train", "text.txt", "--name", "first", *TINY_BIGRAM])
    run = store.find(NAME)
    split = SplitRecord(sha256=EVIL, n_tokens=1, n_chars=1, n_bytes=1)
    assert run.record.corpus is not None
    corpus = run.record.corpus
    run.write_record(
        run.record.model_copy(
            update={
                "corpus": Corpus(label=EVIL, sha256=corpus.sha256, dataset_dir=corpus.dataset_dir, splits={**corpus.splits, EVIL: split}),
                "arch": EVIL,
                "tokenizer": FORMULA,
                "argv": [EVIL, EVIL],
                "device": EVIL,
                "device_name": EVIL,
                "group": FORMULA,
                "versions": {EVIL: EVIL},
                "git_commit": EVIL,
                "git_dirty": True,
                "preset": EVIL,
                "base": Base(run=EVIL, sha256=EVIL),
                "resume_exact_history": [Session(step=1, exact=False, reasons=[EVIL])],
            }
        )
    )
    run.annotate(lambda _: Annotations(tags=[FORMULA[:10], "@SUM(1)", "\x1b[31mRED"], note=EVIL * 20))
    return Path("runs")


TINY_BIGRAM = shlex.split("--arch bigram --block-size 8 --batch-size 4 --max-steps 2 --device cpu --precision fp32 --compile off")


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(evil: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Everything that a command writes, to a pipe or to a terminal."""
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm-256color")

    def run(command: str, *, terminal: bool = False, code: int | None = 0) -> str:
        out = Terminal() if terminal else io.StringIO()
        arguments = [NAME if word == "EVIL" else NAME[:3] if word == "EVI" else word for word in shlex.split(command)]
        with monkeypatch.context() as patched:
            for stream in ("stdout", "stderr"):
                patched.setattr(sys, stream, out)
            found = cli_module.run(arguments)
        assert code is None or found == code, f"{command}: {out.getvalue()[-500:]!r}"
        assert "Traceback" not in out.getvalue()
        return out.getvalue()

    return run


def test_no_command_writes_control_characters_to_a_terminal_or_a_pipe(shown: Callable[..., str]) -> None:
    for command in READERS:
        for terminal in (True, False):
            text = shown(command, terminal=terminal, code=None if command.startswith(("runs import", "runs verify")) else 0)
            if terminal or not command.startswith("generate"):  # a program gets the text that a model writes as it is
                assert not RAW.search(text), f"{command}: {text[RAW.search(text).start() - 60 :][:120]!r}"  # type: ignore[union-attr]


def test_json_on_a_terminal_has_no_control_characters_and_reads_back_equal(shown: Callable[..., str]) -> None:
    for command in ("runs list --json", "runs leaderboard --json", "runs show EVIL --json", "runs diff EVIL first --json"):
        text = shown(command, terminal=True)
        assert not re.search(r"\x1b|\x07|\x9b|\x00|\u202e", text)
        json.loads(text[text.index("[" if "list" in command or "board" in command else "{") :])
    assert {run["corpus"] for run in json.loads(shown("runs list --json"))} == {EVIL, "text.txt"}


def test_csv_holds_no_formula_and_numbers_stay_numbers(shown: Callable[..., str]) -> None:
    neutralised = 0
    for command in TABLES[:3]:
        rows = list(csv.reader(io.StringIO(shown(f"{command} --csv"))))
        cells = [cell for row in rows for cell in row]
        assert not RAW.search(shown(f"{command} --csv", terminal=True))
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        assert len({len(row) for row in rows}) == 1
        score = rows[0].index("nats_per_char")
        assert all(float(row[score]) > 0 for row in rows[1:])
        neutralised += sum(cell.startswith("'=cmd") for cell in cells)
    assert neutralised >= 2


def test_markdown_holds_no_markup(shown: Callable[..., str]) -> None:
    for command in (*(f"{table} --md" for table in TABLES), "runs diff EVIL first --md", "compare EVIL first --md"):
        text = shown(command)
        assert not RAW.search(text), command
        assert not ACTIVE.search(text), f"{command}: {ACTIVE.search(text)}"
        for line in text.splitlines():
            if line.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", text[text.index("|") :].splitlines()[0]))


def test_pages_and_pictures_hold_no_markup(shown: Callable[..., str]) -> None:
    for command, file in (
        ("runs plot EVIL first --html a.html", "a.html"),
        ("compare EVIL first --prompt To --plot b.html", "b.html"),
        ("generate EVIL --prompt To --max-new-tokens 3 --html c.html", "c.html"),
        ("runs plot EVIL first --out d.svg", "d.svg"),
    ):
        if file == "d.svg" and not find_spec("matplotlib"):
            continue
        shown(command)
        page = Path(file).read_text(encoding="utf-8")
        assert not RAW.search(page), f"{file}: {page[RAW.search(page).start() - 60 :][:120]!r}"  # type: ignore[union-attr]
        assert not MARKUP.search(page), file


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_exports_hold_no_markup_and_no_further_instructions(shown: Callable[..., str], kind: str) -> None:
    if kind == "gguf":
        pytest.importorskip("gguf")
    shown(f"runs export EVIL --format {kind} --out exported")
    card = Path("exported/README.md").read_text(encoding="utf-8")
    assert not RAW.search(card)
    inline = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"^```.*?^```$", "", card, flags=re.MULTILINE | re.DOTALL))
    assert not ACTIVE.search(inline), inline
    assert card.count("\n---\n") == 1  # the end of the front matter
    for path in Path("exported").iterdir():
        assert path.name == escaping.file_name(path.name)
    if kind == "gguf":
        assert [line.split()[0] for line in Path("exported/Modelfile").read_text().splitlines()] == ["FROM", "TEMPLATE", *["PARAMETER"] * 4]


def test_a_notebook_holds_no_markup_and_only_its_own_code(shown: Callable[..., str]) -> None:
    shown("runs export EVIL --format notebook --out evil.ipynb")
    document = Path("evil.ipynb").read_text(encoding="utf-8")
    assert not RAW.search(document)
    for cell in json.loads(document)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            assert not ACTIVE.search(text), text
        else:
            compile(text, cell["id"], "exec")
            assert "=1`" not in re.sub(r"Run\((.*)\)  # change", "", text)  # the name of the folder stands in the path alone
