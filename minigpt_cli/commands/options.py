"""Arguments and flags that several commands share, with their shell completion. Completion imports no torch.

The docstring of a command is its help page. It starts with `\\b` (so that Typer keeps its lines) and a block "Examples:". Each
line of the block has two spaces, a command line that the tests parse, and after two or more spaces its description.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt_cli import registry
from minigpt_cli.errors import UsageError


def complete_run(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Names of runs, newest first, and their architectures."""
    from minigpt_cli.errors import MiniGPTError
    from minigpt_cli.runstore.store import RunStore, resolve_runs_dir
    from minigpt_cli.runstore.weights import kept_steps

    yield from (pair for pair in [("latest", "the newest run"), ("top", "first on the leaderboard")] if pair[0].startswith(incomplete))
    folder = resolve_runs_dir(ctx.params.get("runs_dir"))
    try:
        runs = RunStore(folder).list()
    except (MiniGPTError, OSError):
        return
    for run in runs:
        record = getattr(run, "record", None)
        if run.name.startswith(incomplete):
            yield run.name, getattr(record, "arch", "")
        if record is not None and incomplete.startswith(f"{run.name}@"):
            references = (f"{run.name}@{which}" for which in ("best", "last", *kept_steps(record)))
            yield from ((reference, "") for reference in references if reference.startswith(incomplete))


def complete_preset(incomplete: str) -> Iterator[tuple[str, str]]:
    """Names of presets, and their summaries."""
    from minigpt_cli.presets.catalog import preset_names, preset_summary

    yield from ((name, preset_summary(name)) for name in preset_names() if name.startswith(incomplete))


def complete_experiment(incomplete: str) -> Iterator[tuple[str, str]]:
    """Names of experiments, and their questions."""
    from minigpt_cli.experiments.catalog import experiment_names, read_experiment

    yield from ((name, read_experiment(name).question) for name in experiment_names() if name.startswith(incomplete))


def complete_source(incomplete: str) -> Iterator[str]:
    """Named corpora, then files and folders."""
    yield from (name for name in registry.CORPORA if name.startswith(incomplete))
    folder = os.path.dirname(incomplete)
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = os.path.join(folder, entry.name)
        if path.startswith(incomplete) and not entry.name.startswith("."):
            yield path + "/" if entry.is_dir() else path


def complete_tokenizer(incomplete: str) -> Iterator[str]:
    """Names of tokenizers, then tokenizer.json and .model files."""
    yield from (name for name in registry.TOKENIZERS if name.startswith(incomplete))
    yield from (path for path in complete_source(incomplete) if path.endswith((".json", ".model", "/")))


def option(metavar: str, help: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """A flag with a value. Without `names` it is named after the parameter."""
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


def switch(name: str, help: str, *names: str, panel: str | None = None) -> Any:
    """A flag without a value, and without the --no- form that Typer would add to one that is not named."""
    return typer.Option(name, *names, metavar="", help=help, rich_help_panel=panel)


_RUN_HELP = "A run's name, an unambiguous prefix of it, 'latest', 'top' (first on the leaderboard), or a path to it."

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=_RUN_HELP, autocompletion=complete_run)]
"""A run that must be named."""

OptionalRun = Annotated[str | None, typer.Argument(metavar="RUN", help=_RUN_HELP + " Default: latest.", autocompletion=complete_run)]
"""A run, by default the latest; the command prints its name on stderr."""

RunArguments = Annotated[list[str], typer.Argument(metavar="RUN", help=_RUN_HELP, autocompletion=complete_run)]
"""One run or more."""

OptionalRunArguments = Annotated[
    list[str] | None, typer.Argument(metavar="RUN", help=_RUN_HELP + " Default: latest.", autocompletion=complete_run)
]
"""Any number of runs; the default is the latest."""

SourceArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE",
        help="Files of text, Markdown, JSONL, JSON, CSV, parquet, HTML, EPUB, Word or PDF, each also compressed; folders of them; '-' for "
        "stdin; a URL; hf:OWNER/DATASET; or named corpora. Default: data/input.txt if it is there, else python-docs.",
        autocompletion=complete_source,
    ),
]
"""The sources of the text."""

RunsDir = Annotated[Path | None, option("DIR", "The folder of the runs; default: $MINIGPT_RUNS_DIR, else ./runs.", "--runs-dir")]

JsonFlag = Annotated[bool, switch("--json", "Print only JSON on stdout.")]

YesFlag = Annotated[bool, switch("--yes", "Do not ask before deleting.", "-y")]

MarkdownFlag = Annotated[bool, switch("--md", "Print a Markdown table.")]

LatexFlag = Annotated[bool, switch("--latex", "Print a LaTeX table (booktabs).")]

CsvFlag = Annotated[bool, switch("--csv", "Print CSV.")]


def _checkpoint(value: str | None) -> str | None:
    from minigpt_cli.runstore.weights import checkpoint_named

    return None if value is None else checkpoint_named(value)


CheckpointOption = Annotated[
    str | None,
    option(
        "best|last|STEP",
        "The weights of the best validation step, of the last, or of a step that train --keep-every kept. RUN@STEP means the same.",
        "--checkpoint",
        "--ckpt",
        callback=_checkpoint,
    ),
]

Sort = Annotated[str | None, option("FIELD", "Order by a field; -FIELD: largest first.")]
Top = Annotated[int, option("N", "Show only the first N; 0: all.", min=0, show_default=False)]
Tag = Annotated[list[str] | None, option("TAG", "Only runs with this tag; may be repeated.")]
Where = Annotated[str | None, option("CONDITION", "Only runs that meet this condition, e.g. 'arch=moe and lr<2e-4'.")]


def check_page(path: Path | None, flag: str = "--html") -> None:
    """Raise UsageError unless the path is an HTML file's: a mistyped one must not replace a run's files."""
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{flag} {path} does not end in .html: name a page")
