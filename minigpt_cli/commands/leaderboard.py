"""minigpt runs leaderboard: rank runs, also at an equal budget, or with one row for all seeds of a recipe."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from minigpt_cli.commands.options import (
    CsvFlag,
    JsonFlag,
    LatexFlag,
    MarkdownFlag,
    RunsDir,
    Sort,
    Tag,
    Top,
    Where,
    check_page,
    complete_source,
    option,
    switch,
)
from minigpt_cli.commands.run_fields import one_format, select, warn_of_unreadable
from minigpt_cli.display import console
from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation import leaderboard as evaluation
from minigpt_cli.evaluation.leaderboard import AnyRow, Folded, Row, by_field
from minigpt_cli.evaluation.recipes import repeat_notice
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.display.tables import Form

_CLASS = "A class"


def leaderboard(
    sort: Sort = None,
    top: Top = 0,
    tag: Tag = None,
    where: Where = None,
    budget: Annotated[
        str | None,
        option(
            "tokens|seconds|params[=N]",
            "Rank by the score within N tokens or seconds (default: the most that all runs have), or among at most N parameters.",
        ),
    ] = None,
    fold_seeds: Annotated[bool, switch("--fold-seeds", "One row for all runs that differ only in their seed.")] = False,
    csv: CsvFlag = False,
    md: MarkdownFlag = False,
    latex: LatexFlag = False,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
    class_: Annotated[
        Path | None, option("FOLDER", "Rank the runs of a class, FOLDER/STUDENT/runs, and show its bets.", "--class", panel=_CLASS)
    ] = None,
    data: Annotated[str | None, option("FILE", "Score them all on this text.", panel=_CLASS, autocompletion=complete_source)] = None,
    html: Annotated[Path | None, option("FILE", "Also write the class as a page.", panel=_CLASS)] = None,
) -> None:
    """\b
    Examples:
      minigpt runs leaderboard
      minigpt runs leaderboard --top 10 --where 'n_params<1e6'
      minigpt runs leaderboard --budget seconds=60
      minigpt runs leaderboard --md
      minigpt runs leaderboard --class 7b --data text.txt --html class.html

    Ranks runs by nats per character of their best weights on the whole validation text. Each text has its own ranking;
    runs with a statistical tie with the first are marked ≈.
    """
    form = one_format(json=json, csv=csv, md=md, latex=latex)
    if class_ is not None:
        _refuse_beside_class(
            {
                "--sort": sort, "--top": top, "--tag": tag, "--where": where, "--budget": budget, "--fold-seeds": fold_seeds,
                "--csv": csv, "--md": md, "--latex": latex, "--runs-dir": runs_dir,
            }
        )  # fmt: skip
        check_page(html)
        from minigpt_cli.commands.class_board import class_board

        return class_board(class_, data=data, html=html, json=json)
    if data is not None or html is not None:
        flag = "--data" if data is not None else "--html"
        raise UsageError(f"{flag} is for --class FOLDER: give the folder of a class, or leave {flag} out")
    everything = RunStore(runs_dir).list()
    warn_of_unreadable(everything)
    chosen = select((run for run in everything if isinstance(run, Run)), where=where, tags=tag or [])
    if broken := [run.name for run in chosen if run.without]:
        console.notice(f"trained without a part of the model, so not ranked: {', '.join(broken)}")
    if fold_seeds:
        recipes = by_field(folded(within(chosen, budget)), sort, list(Folded.__dataclass_fields__))
        show_folded(chosen, _first(recipes, top), form)
    else:
        rows = by_field(ranked(chosen, budget), sort, list(Row.model_fields))
        show(chosen, _first(rows, top), form)
    return None


def _refuse_beside_class(given: Mapping[str, Any]) -> None:
    if flags := [flag for flag, value in given.items() if value]:
        raise UsageError(f"{flags[0]} cannot be used with --class: it takes --data, --html and --json")


def ranked(runs: Sequence[Run], budget: str | None = None) -> list[Row]:
    """Rows best first, each text apart; within `budget` if there is one. Raises UsageError for any other budget than these."""
    chosen = within(runs, budget)
    by_measure = budget is not None and not budget.startswith("params")  # scores during training were not kept: nothing to pair
    return evaluation.rank(chosen, with_ties=not by_measure)


def within(runs: Sequence[Run], budget: str | None) -> list[Run]:
    """The runs with their scores within `budget`; prints a notice about it."""
    if budget is None:
        return list(runs)
    found = evaluation.within(runs, budget)
    if found.limit is not None:
        console.notice(
            f"at {found.limit:,.0f} {found.unit}, from evaluations during training: sampled if those were sampled, and without intervals"
        )
    for line in found.left_out:
        console.warn(line)
    return found.runs


def folded(runs: Sequence[Run]) -> list[Folded]:
    """Recipes best first, separately for each text; warns of runs that repeat another and do not count."""
    rows, repeats = evaluation.fold(runs)
    for pair in repeats:
        console.warn(repeat_notice(*pair))
    return rows


def _first(rows: Sequence[AnyRow], top: int) -> list[AnyRow]:
    """The first `top` rows of each text; all rows for 0."""
    kept: dict[str, int] = defaultdict(int)
    found = []
    for row in rows:
        kept[row.text_sha256] += 1
        if not top or kept[row.text_sha256] <= top:
            found.append(row)
    return found


def show(runs: Sequence[Run], rows: Sequence[Row], form: Form = "table") -> None:
    """Print rows in this format."""
    from minigpt_cli.display.run_tables import leaderboard_table, print_leaderboard

    if form == "json":
        console.write_json([row.model_dump(mode="json") for row in rows])
    elif form == "table" and not rows:
        console.notice("no scored runs" + (" that match" if runs else " yet: start with minigpt train"))
    elif form == "table":
        print_leaderboard(grouped(runs, rows))
    else:
        _write(runs, rows, list(Row.model_fields), leaderboard_table, form)


def show_folded(runs: Sequence[Run], rows: Sequence[Folded], form: Form = "table") -> None:
    """Print one row for each recipe in this format."""
    from minigpt_cli.display.run_tables import folded_table
    from minigpt_cli.display.tables import print_table

    if form == "json":
        console.write_json([asdict(row) for row in rows])
    elif form == "table":
        for title, group in grouped(runs, rows):
            print_table(*folded_table(group), title=title)
    else:
        _write(runs, rows, list(Folded.__dataclass_fields__), folded_table, form)


def _write(
    runs: Sequence[Run], rows: Sequence[AnyRow], names: list[str], table: Callable[[Sequence[AnyRow]], tuple[Any, Any]], form: Form
) -> None:
    """Print rows to paste: as CSV with the text as a column, or a table for each text as Markdown or LaTeX."""
    from minigpt_cli.display.tables import as_csv, as_latex, as_markdown
    from minigpt_cli.escaping import latex, markdown

    if form == "csv":
        texts = _texts(runs)
        cells: list[list[Any]] = []
        for row in rows:
            values: list[Any] = [getattr(row, name) for name in names]
            cells.append([*values, texts.get(row.text_sha256, "")])
        console.write_rows(as_csv([*names, "text"], cells))
        return
    make, escape, strong = (as_latex, latex, "% {}") if form == "latex" else (as_markdown, markdown, "**{}**")
    blocks = [(strong.format(escape(title)) + "\n\n" if title else "") + make(*table(group)) for title, group in grouped(runs, rows)]
    console.write("\n\n".join(blocks))


def _texts(runs: Sequence[Run]) -> dict[str, str]:
    """Validation texts by hash, named by label and size."""
    from minigpt_cli.evaluation.eval_target import given_source

    return {
        run.record.text_sha256: f"{given_source(run, 'val') or corpus.label}, {corpus.splits['val'].n_chars:,} characters of validation"
        for run in runs
        if (corpus := run.record.corpus) and "val" in corpus.splits
    }


def grouped(runs: Sequence[Run], rows: Sequence[AnyRow]) -> list[tuple[str, list[AnyRow]]]:
    """Rows grouped by validation text, each group with a title if there is more than one; equal titles get the beginning of the hash."""
    groups: dict[str, list[AnyRow]] = defaultdict(list)
    for row in rows:
        groups[row.text_sha256].append(row)
    if len(groups) == 1:
        return [("", group) for group in groups.values()]
    texts = _texts(runs)
    titles = {sha: texts.get(sha, "a text without a record") for sha in groups}
    counts = Counter(titles.values())
    return [(titles[sha] + (f" ({sha[:8]})" if counts[titles[sha]] > 1 else ""), group) for sha, group in groups.items()]
