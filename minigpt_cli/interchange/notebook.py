"""Export a run as a Jupyter notebook that opens it where it is: its curves, what it writes, how surprised it is by a text, another run.

The file is the JSON of nbformat 4.5. It holds no weights and no text of the run but a prompt; its cells use the Python interface alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minigpt_cli.checkpoints import Loaded
from minigpt_cli.data.opening import opening_of
from minigpt_cli.errors import UsageError
from minigpt_cli.escaping import json_text, markdown
from minigpt_cli.interchange.huggingface import Exported
from minigpt_cli.storage.atomic_io import check_parent, write_atomic

_OPEN = """
from minigpt_cli import Run, compare, leaderboard

run = Run({address})  # change this where the run has moved
run
"""
_CURVES = """
import matplotlib.pyplot as plt

rows = run.metrics
figure, axes = plt.subplots()
for name, label in (("train_loss", "training"), ("val_loss", "validation")):
    axes.plot([row["step"] for row in rows], [row[name] for row in rows], marker=".", label=label)
axes.set(xlabel="step", ylabel="nats per token")
legend = axes.legend()
"""
_WRITE = """
prompt = {prompt}
for settings in ({{"greedy": True}}, {{"temperature": 0.3}}, {{"temperature": 1.0, "top_k": 10}}, {{"temperature": 1.0}}):
    text = run.generate(prompt, max_new_tokens=200, seed=1{chat}, **settings)
    print(settings, prompt + {between}text, sep="\\n", end="\\n\\n")
"""
_SCORE = """
score = run.score(prompt + text)  # what it wrote last; put a text of yours here
score
"""
_SURPRISES = """
for nats, character in sorted(zip(score.nats, score.text), reverse=True)[:10]:
    print(f"{nats:.2f}", repr(character))
"""
_COMPARE = """
texts = {row["run"]: row["text_sha256"] for row in leaderboard(runs_dir=run.dir.parent)}
others = [name for name in texts if name != run.name and texts[name] == texts.get(run.name)]
verdict = compare(run, others[0], runs_dir=run.dir.parent) if others else "No other run in this folder has a score on the same text."
verdict
"""


def export(loaded: Loaded, out: Path, dtype: str = "f32") -> Exported:
    """Write the notebook `out`. Raises UsageError if it is there already: it may have been changed by hand."""
    if dtype != "f32":  # it holds no weights
        raise UsageError(f"--format notebook has no --dtype {dtype}: it opens the run and holds no weights")
    if out.suffix != ".ipynb":
        raise UsageError(f"--out {out} does not end in .ipynb: name a file")
    if out.exists():
        raise UsageError(f"{out} is there already: choose another --out, or delete it")
    check_parent(out)
    write_atomic(out, json_text(json.dumps(_notebook(_cells(loaded)), indent=1, ensure_ascii=False)) + "\n")
    return Exported(out, [out.name], "a Jupyter notebook")


def _cells(loaded: Loaded) -> list[tuple[str, str]]:
    """The kind and the text of each cell."""
    record, opening = loaded.record, opening_of(loaded.record, loaded.tokenizer)
    about = f"{markdown(record.arch)}, {record.n_params:,} parameters, step {loaded.step:,}"
    writing = {"prompt": repr(opening.text), "chat": ", chat=True" if opening.chat else "", "between": '"\\n" + ' if opening.chat else ""}
    return [
        ("markdown", f"# {markdown(record.name)}\n\n{about}. Run the cells from the first to the last, with the Python that has minigpt."),
        ("code", _OPEN.format(address=repr(loaded.address))),
        ("markdown", "## Curves\n\nThe loss at each evaluation. This needs matplotlib: `pip install matplotlib`."),
        ("code", _CURVES),
        ("markdown", "## What it writes\n\nOne prompt under several settings. The same seed gives the same text."),
        ("code", _WRITE.format(**writing)),
        ("markdown", "## How surprised it is\n\nEach character is tinted by its nats, −ln of its probability."),
        ("code", _SCORE),
        ("markdown", "The ten most surprising characters, each with its nats:"),
        ("code", _SURPRISES),
        ("markdown", "## Another run\n\nBoth runs on the same characters. A difference smaller than its noise is a tie."),
        ("code", _COMPARE),
    ]


def _notebook(cells: list[tuple[str, str]]) -> dict[str, Any]:
    """The document of nbformat 4.5."""
    written = [_cell(f"cell-{number}", kind, text.strip()) for number, (kind, text) in enumerate(cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _cell(name: str, kind: str, text: str) -> dict[str, Any]:
    """A cell as it is before it has run."""
    cell: dict[str, Any] = {"cell_type": kind, "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}
    return cell | {"execution_count": None, "outputs": []} if kind == "code" else cell
