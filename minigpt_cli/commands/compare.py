"""minigpt compare: which of several runs, or recipes, is really better, by how much, and where. No torch unless a model must be run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from minigpt_cli.commands.options import CheckpointOption, JsonFlag, MarkdownFlag, RunArguments, RunsDir, complete_source
from minigpt_cli.display import console
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.store import Run, RunStore

if TYPE_CHECKING:
    from minigpt_cli.commands.compare_output import Compared
    from minigpt_cli.evaluation.eval_target import Target

_SAMPLE_TOKENS = 300


def compare(
    run: RunArguments,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Score this text, not the validation split.", autocompletion=complete_source, show_default=False),
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="Which split of the runs' common text.")] = "val",
    ckpt: CheckpointOption = "best",
    stride: Annotated[int, typer.Option(min=0, metavar="N", help="Slide windows by N tokens; 0: consecutive windows.")] = 0,
    group_by: Annotated[
        Literal["config"] | None, typer.Option(help="Take runs that differ in their seed alone as one recipe.", show_default=False)
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Also let each run continue this.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of what they write.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the curves as .png or .svg, or everything as .html.", show_default=False)
    ] = None,
    x: Annotated[Literal["steps", "tokens", "seconds"], typer.Option("--x", help="What to draw curves against.")] = "steps",
    dark: Annotated[bool, typer.Option("--dark/--light", metavar="", help="Background of a .png or .svg.")] = False,
    device: Annotated[Literal["auto", "cpu", "mps", "cuda"], typer.Option(help="Where to score what is not kept yet.")] = "auto",
    md: MarkdownFlag = False,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt compare modern-1 moe-1               which is better, and where
      minigpt compare modern-1 moe-1 --data book.txt --prompt "The "
      minigpt compare 'modern-*' 'moe-*'           seeds of two recipes
      minigpt compare 'sweep-*' --group-by config  every recipe of a sweep
      minigpt compare modern-1 moe-1 --plot page.html
      minigpt compare top latest --md              a table to paste

    Scores every run on the same characters, whatever its tokenizer, and says whether the difference is more than chance
    (paired block bootstrap; Holm's correction for several pairs). Of conversations (.jsonl) the answers alone are scored. Scores
    are kept, so a second time no model is loaded.
    """
    if md and json:
        raise UsageError("--md and --json exclude each other: choose one")
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".html"):
        raise UsageError(f"--plot {plot} does not end in .png, .svg or .html: choose one")
    from minigpt_cli.commands import compare_output as out
    from minigpt_cli.evaluation.grouping import chosen_sides

    groups, notices = chosen_sides(RunStore(runs_dir), run, by_config=group_by == "config")
    for notice in notices:
        console.warn(notice)
    found = _compared(groups, _target(split, data), ckpt, stride, device)
    samples = [] if prompt is None else _samples(groups, prompt, ckpt, seed)
    if json:
        console.write_json(out.document(found, samples, prompt))
    elif md:
        out.print_markdown(found)
    else:
        out.print_comparison(found, samples, prompt or "", x)
    if plot is not None:
        out.write_plot(plot, found, x, samples, prompt or "", dark=dark)
        console.notice(f"wrote {plot}")


def _target(split: Literal["val", "test"], data: str | None) -> Target:
    from minigpt_cli.evaluation.eval_target import Target

    if data is None:
        return Target(split)
    if split != "val":
        raise UsageError(f"--data compares on a text of its own and --split {split} on the runs': choose one")
    from minigpt_cli.evaluation.evaluate_run import read_text

    return read_text(data)


def _compared(groups: Sequence[tuple[str, Sequence[Run]]], target: Target, ckpt: str, stride: int, device: str) -> Compared:
    from minigpt_cli.commands.compare_output import Compared
    from minigpt_cli.evaluation import comparison
    from minigpt_cli.evaluation.eval_target import check_common_text
    from minigpt_cli.evaluation.evaluate_run import evaluate_run

    check_common_text([run for _, runs in groups for run in runs], target)

    def choose() -> str:
        from minigpt_cli.training.planner import choose_device

        return choose_device(device)[0]

    sides = []
    for name, runs in groups:
        evaluations = [
            evaluate_run(r, target, ckpt=r.checkpoint or ckpt, stride=stride, device=choose, on_model=_say_scoring) for r in runs
        ]
        for notice in (line for evaluation in evaluations for line in evaluation.notices):
            console.warn(notice)
        sides.append(comparison.Side(name, tuple(evaluation.score for evaluation in evaluations)))
    text = sides[0].scores[0].text.decode()
    return Compared(
        groups=groups,
        sides=sides,
        pairs=comparison.compare_pairs(sides),
        target=target,
        text=text,
        kinds=comparison.by_kind(sides, text),
        positions=comparison.by_position(sides),
        passages=comparison.most_different(sides[0], sides[1], text),
        differences=_differences(groups),
    )


def _say_scoring(name: str) -> None:
    console.notice(f"scoring {name}")


def _differences(groups: Sequence[tuple[str, Sequence[Run]]]) -> dict[str, list[Any]]:
    """Settings in which the sides differ. A side of several runs has the value that they share, or None where they differ."""
    from minigpt_cli.commands.config_fields import settings
    from minigpt_cli.commands.run_fields import RunFields

    out = {}
    for name in settings():
        values = []
        for _, runs in groups:
            own = [RunFields(run).get(name) for run in runs]
            values.append(own[0] if all(value == own[0] for value in own) else None)
        if any(value != values[0] for value in values):
            out[name] = values
    return out


def _samples(groups: Sequence[tuple[str, Sequence[Run]]], prompt: str, ckpt: str, seed: int) -> list[tuple[str, str]]:
    """What the first run of each side writes after the prompt, with the same seed; what it answers, if it learned conversations."""
    from minigpt_cli.commands.generate import question
    from minigpt_cli.evaluation.eval_target import Target, scores_answers
    from minigpt_cli.generation import samples
    from minigpt_cli.generation.engine import Engine, Request
    from minigpt_cli.generation.open_run import open_model

    out = []
    for _, runs in groups:
        writer = open_model(runs[0], runs[0].checkpoint or ckpt)
        asked, stop = question(writer, prompt, []) if scores_answers(runs[0], Target()) else (prompt, [])
        request = Request(samples.prompt_ids(writer.tokenizer, asked), max_new_tokens=_SAMPLE_TOKENS, seed=seed, stop=tuple(stop))
        engine = Engine(writer.decoder(), writer.token_bytes)
        out.append((runs[0].name, samples.collect(samples.run(engine, request), 1)[0].text))
    return out
