"""runs export --format notebook: its cells run from the first to the last, and show what a notebook is to show.

Jupyter is 100 MB and no dependency, so the cells run here in one namespace of a new Python, which shows the value of the last line as
Jupyter does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import tiny

from minigpt_cli import cli

RUN_CELLS = """
import ast, json, sys, warnings
import matplotlib

warnings.simplefilter("error")
matplotlib.use("agg")
for notebook in sys.argv[1:]:
    names = {}
    for cell in json.load(open(notebook, encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, cell["id"], "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
                print(getattr(value, "_repr_html_", value.__repr__)())
            print("end of the cell")
    print([len(line.get_xdata()) for line in names["axes"].lines], "end of the cell", sep="\\n")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the runs `first` and `second`, whose scores are tied or not, and `talker`, trained on conversations."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("text.txt").write_text(tiny.text(), encoding="utf-8")
        Path("chats.jsonl").write_text(tiny.chats(), encoding="utf-8")
        for name, source in (("first", "text.txt"), ("second", "text.txt"), ("talker", "chats.jsonl")):
            assert cli.run(["train", source, "--name", name, *tiny.training(4, 2)]) == 0
        yield folder


def exported(folder: Path, run: str, out: str, *more: str) -> int:
    return cli.run(["runs", "export", run, "--format", "notebook", "--out", str(folder / out), "--runs-dir", str(folder / "runs"), *more])


@pytest.fixture(scope="module")
def shown(home: Path) -> list[list[str]]:
    """What each code cell of the notebooks of `first` and `talker` prints and shows, and last the number of points of each curve."""
    notebooks = [home / "first.ipynb", home / "talker.ipynb"]
    for notebook in notebooks:
        assert exported(home, notebook.stem, notebook.name) == 0
    work = home / "elsewhere"  # a notebook is opened from any folder
    work.mkdir()
    command = [sys.executable, "-c", RUN_CELLS, *map(str, notebooks)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    *parts, _ = (part.strip() for part in done.stdout.split("end of the cell\n"))
    return [parts[: len(parts) // 2], parts[len(parts) // 2 :]]


def test_the_cells_run_and_show_the_run_its_curves_texts_scores_and_a_comparison(shown: list[list[str]]) -> None:
    opened, drawn, written, score, surprises, compared, points = shown[0]
    assert ">first<" in opened
    assert (drawn, points) == ("", "[2, 2]")  # two evaluations, training and validation
    assert [written.count(settings) for settings in ("'temperature': 0.3", "'top_k': 10", "'greedy': True")] == [1, 1, 1]
    assert "nats per character" in score
    assert score.count("<span") > 100  # a tinted character each
    assert len(surprises.splitlines()) == 10
    assert "second" in compared
    assert "indistinguishable" in compared or "better" in compared


def test_a_notebook_is_valid_and_holds_no_text_and_no_output(home: Path) -> None:
    assert exported(home, "first@last", "last.ipynb") == 0
    document: dict[str, Any] = json.loads((home / "last.ipynb").read_text("utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"]) >= 10
    for cell in document["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"} | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert cell.keys() == wanted
        assert cell.get("outputs", []) == []
    code = "".join(document["cells"][1]["source"])
    assert f"Run({str((home / 'runs' / 'first').resolve()) + '@last'!r})" in code  # the checkpoint that was asked for
    assert tiny.text()[:40] not in (home / "last.ipynb").read_text("utf-8")


def test_a_run_of_conversations_is_asked_and_not_continued(home: Path, shown: list[list[str]]) -> None:
    assert "chat=True" in (home / "talker.ipynb").read_text("utf-8")
    assert "No other run" in shown[1][5]


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("first.txt", (), "does not end in .ipynb"),
        ("missing/first.ipynb", (), "missing"),
        ("there.ipynb", (), "is there already: choose another --out"),
        ("x.ipynb", ("--dtype", "f16"), "has no --dtype f16"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_replaced(
    home: Path, capsys: pytest.CaptureFixture[str], out: str, more: tuple[str, ...], message: str
) -> None:
    (home / "there.ipynb").write_text("changed by hand")
    assert exported(home, "first", out, *more) == 2
    assert message in capsys.readouterr().err
    assert (home / "there.ipynb").read_text() == "changed by hand"
    assert not (home / "x.ipynb").exists()
