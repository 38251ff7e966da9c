"""minigpt runs: list, show, tag, check and remove runs. Only verify, export and import load torch."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt_cli.commands import options
from minigpt_cli.commands.lazy_commands import Mount, lazy_group
from minigpt_cli.commands.options import RunsDir, switch
from minigpt_cli.commands.run_fields import differences, listing, one_format, ordered, select, shown_differences
from minigpt_cli.display import console, waiting
from minigpt_cli.errors import RunNotFound, UsageError, unknown_name
from minigpt_cli.escaping import one_line, printable
from minigpt_cli.runstore.directory import DamagedRun, Run
from minigpt_cli.runstore.records import Annotations
from minigpt_cli.runstore.store import RunStore, run_at

app = typer.Typer(
    name="runs",
    cls=lazy_group(
        {
            "leaderboard": Mount("minigpt_cli.commands.leaderboard:leaderboard", "Which run is best, and which are tied with it."),
            "watch": Mount("minigpt_cli.commands.watch:watch", "Watch runs while they train."),
            "look": Mount("minigpt_cli.commands.look:look", "What is inside a run: what its parts are worth, and what they do."),
            "diagnose": Mount("minigpt_cli.commands.diagnose:diagnose", "What is wrong with a run, if anything."),
            "plot": Mount("minigpt_cli.commands.plot:plot", "Draw the curves of runs."),
            "export": Mount("minigpt_cli.commands.interchange:export", "Write a run for Hugging Face or llama.cpp."),
            "prune": Mount("minigpt_cli.commands.prune:prune", "Thin the checkpoints that runs keep over time."),
            "import": Mount("minigpt_cli.commands.interchange:import_run", "Make a run from a checkpoint of another program."),
        }
    ),
    add_completion=False,
    invoke_without_command=True,
)

_COMPARED = [
    "text_sha256", "n_params", "n_active_params", "vocab_size", "stop_reason", "stop_step", "best_step", "nats_per_char", "val_loss",
    "elapsed_s",
]  # fmt: skip


@app.callback()
def runs(ctx: typer.Context) -> None:
    """\b
    Examples:
      minigpt runs list                               everything, with its state
      minigpt runs leaderboard --top 10               the ten best
      minigpt runs show latest                        one run in full
      minigpt runs list --where 'arch=moe and lr<2e-4' --json
      minigpt runs rm old-1 old-2

    Lists, ranks, shows, watches, plots, tags, verifies, exports and removes runs.
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command("list", short_help="Every run, with its state.")
def list_runs(
    sort: options.Sort = None,
    top: options.Top = 0,
    tag: options.Tag = None,
    where: options.Where = None,
    csv: options.CsvFlag = False,
    md: options.MarkdownFlag = False,
    latex: options.LatexFlag = False,
    json: options.JsonFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs list
      minigpt runs list --sort -created_at --top 5
      minigpt runs list --where 'status=crashed or tag=keep' --csv

    Lists every run, the most recently saved one last. Damaged runs are listed too.
    """
    from minigpt_cli.display.run_tables import print_list
    from minigpt_cli.display.tables import Column, as_csv, as_latex, as_markdown, flat

    form = one_format(json=json, csv=csv, md=md, latex=latex)
    store = RunStore(runs_dir)
    everything = store.list()
    good = ordered(select((r for r in everything if isinstance(r, Run)), where=where, tags=tag or []), sort)
    damaged = [run for run in everything if isinstance(run, DamagedRun)] if not (tag or where) else []
    rows = [*map(listing, good), *map(listing, damaged)][: top or None]
    names = list(listing(good[0])) if good else ["run", "status"]
    if form == "json":
        console.write_json(rows)
    elif form == "csv":
        console.write_rows(as_csv(names, [[row.get(name) for name in names] for row in rows]))
    elif form in ("markdown", "latex"):
        cells = [["" if (value := flat(row.get(name))) is None else str(value) for name in names] for row in rows]
        console.write_rows((as_latex if form == "latex" else as_markdown)([Column(name) for name in names], cells))
    elif not rows:
        console.notice(f"no runs in {store.dir}" + (" that match" if everything else " yet: start with minigpt train"))
    else:
        print_list(rows)


@app.command(short_help="One run in full.")
def show(run: options.OptionalRun = None, json: options.JsonFlag = False, runs_dir: RunsDir = None) -> None:
    """\b
    Examples:
      minigpt runs show
      minigpt runs show modern-1 --json

    Shows one run in full: its results, its text and its settings.
    """
    chosen = RunStore(runs_dir).find_all([run or "latest"])
    if run is None and not json:
        console.notice(f"showing {chosen[0].name}")
    if json:
        documents = [_document(found) for found in chosen]
        console.write_json(documents if run is not None and "*" in run else documents[0])
    else:
        for found in chosen:
            _show(found)


def _document(found: Run) -> dict[str, Any]:
    annotations = found.annotations
    record = found.record.model_dump(mode="json") | {"status": found.status}
    document = {"run": found.name, "record": record, "config": found.config.model_dump(mode="json"), "tags": annotations.tags}
    return document | {"note": annotations.note, "evaluations": len(list(found.metrics()))}


def _show(found: Run) -> None:
    evaluations = list(found.metrics())
    from minigpt_cli.commands.config_sources import differing_from_defaults
    from minigpt_cli.display.charts import chart_on_screen
    from minigpt_cli.display.run_tables import print_run
    from minigpt_cli.display.training_screen import loss_curves

    chart = chart_on_screen(loss_curves(evaluations), height=9, most=100) if len(evaluations) > 2 else ""
    print_run(found.record, found.status, found.annotations, differing_from_defaults(found.config), chart)


@app.command("rm", short_help="Remove runs.")
def remove(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs, in full, or patterns with *.", autocompletion=None)],
    yes: options.YesFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs rm modern-1
      minigpt runs rm modern-1 modern-2 --yes
      minigpt runs rm 'sweep-3fa2c1~*'

    Removes runs with everything in them. A run that is being trained is refused.
    """
    store = RunStore(runs_dir)
    found: dict[str, Run | DamagedRun] = {entry.name: entry for entry in store.list()}
    for name in run:
        if "*" in name and not any(fnmatchcase(entry, name) for entry in found):
            raise RunNotFound(f"no run in {store.dir} matches {name!r}")
        at = run_at(store.dir / name if name.rpartition("/")[0] in found else Path(name))  # a teacher is NAME/teacher
        if name not in found and at is not None and at.checkpoint is None:
            found[name] = at
        if name not in found and "*" not in name:
            raise RunNotFound(str(unknown_name("run", name, found)) if found else f"no runs in {store.dir}")
    chosen = list(dict.fromkeys(entry for name in run for entry in ([e for e in found if fnmatchcase(e, name)] if "*" in name else [name])))
    for name in chosen:
        _check_whole(found[name])
    if not yes:
        if not (console.is_terminal(sys.stdin) and console.is_terminal(sys.stderr)):
            raise UsageError("removing runs asks for confirmation, which needs a terminal: add --yes")
        waiting.remove()
        typer.confirm(f"Remove {', '.join(map(one_line, chosen))}? This cannot be undone.", abort=True, err=True)
    for name in chosen:
        store.remove(found[name])
        console.notice(f"removed {name}")


def _check_whole(run: Run | DamagedRun) -> None:
    """Raise UsageError for the teacher of another run."""
    if isinstance(run, Run) and run.is_teacher:
        raise UsageError(f"{one_line(run.name)} is in the folder of the run that learns from it, and stays there: name that run")


@app.command(short_help="Rename a run.")
def rename(
    run: options.RunArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW-NAME", help="Its new name.")],
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs rename modern-1 shakespeare-first

    Renames one run.
    """
    store = RunStore(runs_dir)
    found = store.find(run)
    _check_whole(found)
    store.rename(found, new_name)
    console.notice(f"{found.name} is now {new_name}")


@app.command(short_help="Add tags to a run, or remove them.")
def tag(
    run: options.RunArgument,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...", help="Words to find the run by.")],
    delete: Annotated[bool, switch("--remove", "Remove these tags instead.")] = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs tag modern-1 keep baseline
      minigpt runs tag modern-1 baseline --remove
      minigpt runs tag 'lr-*' sweep

    Adds tags to a run, or removes them. --tag and --where find runs by them.
    """
    for word in tags:
        if not word.isprintable() or not word or " " in word or len(word) > 60:
            raise UsageError(f"{word!r} cannot be a tag: use one word of at most 60 printable characters")

    def change(before: Annotations) -> Annotations:
        after = [t for t in before.tags if t not in tags] if delete else list(dict.fromkeys([*before.tags, *tags]))
        return Annotations(tags=after, note=before.note)

    for found in RunStore(runs_dir).find_all([run]):
        console.notice(f"{found.name}: {' '.join(found.annotate(change).tags) or 'no tags'}")


@app.command(short_help="Write a note on a run, or read it.")
def note(
    run: options.RunArgument,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The note; '' removes it; without TEXT it is printed.")] = None,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs note modern-1 "first with the cleaned text"
      minigpt runs note modern-1
      minigpt runs note 'lr-*' "before the text was cleaned"

    Writes a note on a run, or prints it.
    """
    chosen = RunStore(runs_dir).find_all([run])
    for found in chosen:
        if text is None:
            name = f"{one_line(found.name)}: " if len(chosen) > 1 else ""
            console.write(name + printable(found.annotations.note))
        else:
            found.annotate(lambda before: Annotations(tags=before.tags, note=text))


@app.command(short_help="Check the files of a run.")
def verify(run: options.OptionalRun = None, json: options.JsonFlag = False, runs_dir: RunsDir = None) -> None:
    """\b
    Examples:
      minigpt runs verify
      minigpt runs verify modern-1 --json

    Checks the files of a run: checksums, schema, weights against configuration, tokenizer. Exit code 1 if something is wrong.
    """
    from minigpt_cli.display.findings import print_findings
    from minigpt_cli.verify import verify as verify_run

    store = RunStore(runs_dir)
    pattern = run is not None and "*" in run
    chosen = store.matching(run) if run is not None and pattern else [_even_if_damaged(store, run)]
    documents = []
    for found in chosen:
        findings = list(verify_run(found))
        wrong = any(finding.level == "problem" for finding in findings)
        documents.append({"run": found.name, "ok": not wrong, "findings": [finding._asdict() for finding in findings]})
        if not json:
            print_findings(found.name, findings)
    if json:
        console.write_json(documents if pattern else documents[0])
    if not all(document["ok"] for document in documents):
        raise typer.Exit(1)


def _even_if_damaged(store: RunStore, name: str | None) -> Run:
    """The run of this name, even if its files are damaged."""
    damaged = next((Run(entry.dir) for entry in store.list() if entry.name == name), None)
    return damaged or (run_at(Path(name)) if name is not None else None) or store.find(name or "latest")


@app.command(short_help="What differs between runs.")
def diff(run: options.RunArguments, json: options.JsonFlag = False, md: options.MarkdownFlag = False, runs_dir: RunsDir = None) -> None:
    """\b
    Examples:
      minigpt runs diff modern-1 modern-2
      minigpt runs diff modern-1 moe-1 --md

    Shows what differs between runs: settings, text, results.
    """
    store = RunStore(runs_dir)
    found = [one for name in run for one in store.find_all([name])]
    if len(found) < 2:
        raise UsageError("runs diff needs two runs or more: name them")
    from minigpt_cli.display.run_tables import print_differences
    from minigpt_cli.display.tables import Column, as_markdown

    differing = differences([[r] for r in found], _COMPARED)
    rows, names = shown_differences(differing), [r.name for r in found]
    if json:
        console.write_json({"runs": names, "differences": differing})
    elif md:
        console.write(as_markdown([Column(""), *map(Column, names)], [[name, *row] for name, row in rows]))
    else:
        print_differences(names, rows)
