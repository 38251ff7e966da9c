"""minigpt compare: which of several runs, or recipes, is really better, by how much, and where. No torch unless a model must run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from minigpt_cli.commands.config_flags import with_settings
from minigpt_cli.commands.evaluate import device_chooser, target_of, text_of
from minigpt_cli.commands.options import CheckpointOption, JsonFlag, MarkdownFlag, RunArguments, RunsDir, complete_source, option, switch
from minigpt_cli.commands.plot import mean_of_runs
from minigpt_cli.commands.run_fields import differences, shown_differences
from minigpt_cli.config import CLEANING, READING
from minigpt_cli.display import console, format, waiting
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.display.comparison import Compared
    from minigpt_cli.display.terminal_chart import Curve
    from minigpt_cli.evaluation.comparison import Pair, Part, Side
    from minigpt_cli.evaluation.eval_target import Target
    from minigpt_cli.evaluation.evaluate_run import Evaluation
    from minigpt_cli.evaluation.scores import Score

_SAMPLE_TOKENS = 300

Groups = Sequence[tuple[str, Sequence[Run]]]
"""The sides of a comparison: each has a name and its runs."""


@with_settings(only=(*READING, *CLEANING))
def compare(
    run: RunArguments,
    data: Annotated[str | None, option("FILE", "Score this text, not the validation split.", autocompletion=complete_source)] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="Which split of the runs' common text.")] = "val",
    ckpt: CheckpointOption = None,
    stride: Annotated[int, option("N", "Slide windows by N tokens; 0: consecutive windows.", min=0)] = 0,
    recent: Annotated[int, option("N", "Expect again what followed similar words among the last N tokens.", min=0)] = 0,
    group_by: Annotated[Literal["config"] | None, typer.Option(help="Take runs that differ in their seed alone as one recipe.")] = None,
    prompt: Annotated[str | None, option("TEXT", "Also show how each run continues this text.")] = None,
    seed: Annotated[int, option("N", "Seed of the samples.", min=0)] = 0,
    plot: Annotated[Path | None, option("FILE", "Also write the curves as .png, .svg or .pdf, or everything as .html.")] = None,
    x: Annotated[Literal["steps", "tokens", "seconds"], typer.Option("--x", help="The horizontal axis of the curves.")] = "steps",
    dark: Annotated[bool, switch("--dark/--light", "Background of a .png, .svg or .pdf.")] = False,
    device: Annotated[Literal["auto", "cpu", "mps", "cuda"], typer.Option(help="Where to compute scores that are not kept yet.")] = "auto",
    md: MarkdownFlag = False,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
    *,
    settings: dict[str, Any],
) -> None:
    """\b
    Examples:
      minigpt compare modern-1 moe-1               which is better, and where
      minigpt compare modern-1 moe-1 --data book.txt --prompt "The "
      minigpt compare 'modern-*' 'moe-*'           seeds of two recipes
      minigpt compare 'sweep-*' --group-by config  every recipe of a sweep
      minigpt compare modern-1@1000 modern-1@2000  two steps of one run
      minigpt compare modern-1 moe-1 --plot page.html
      minigpt compare top latest --md              a table to paste

    Scores every run on the same characters, whatever its tokenizer, and says whether the difference is more than chance
    (paired block bootstrap; Holm's correction for several pairs). Of conversations (.jsonl) the answers alone are scored. Scores
    are kept, so a second time no model is loaded.
    """
    if md and json:
        raise UsageError("--md and --json cannot be used together: choose one")
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf", ".html"):
        raise UsageError(f"--plot {plot} does not end in .png, .svg, .pdf or .html: choose one")
    from minigpt_cli.display.comparison import print_comparison, print_comparison_markdown

    groups = sides_named(RunStore(runs_dir), run, by_config=group_by == "config")
    everyone = [one for _, runs in groups for one in runs]
    for one in everyone:
        one.checkpoint_to_read(ckpt)
    target = replace(target_of(split, data, settings, everyone), ckpt=ckpt or "best", stride=stride, recent=recent)
    sides = scored(groups, target, device)
    samples = [] if prompt is None else _samples(groups, prompt, target.ckpt, seed)
    curves = [] if plot is None and (json or md) else _curves(groups, x)
    found = replace(compared(groups, sides, target), curves=curves, x=x, prompt=prompt, samples=samples)
    if json:
        console.write_json(document(found, groups))
    elif md:
        print_comparison_markdown(found)
    else:
        print_comparison(found)
    if plot is not None:
        _write_plot(plot, found, dark=dark)
        console.notice(f"wrote {plot}")


def sides_named(store: RunStore, names: Sequence[str], *, by_config: bool = False) -> Groups:
    """The sides that these names and patterns mean; warns of runs that repeat another and do not count. Raises UsageError, RunNotFound."""
    from minigpt_cli.evaluation.grouping import chosen_sides

    groups, notices = chosen_sides(store, names, by_config=by_config)
    for notice in notices:
        console.warn(notice)
    return groups


def compared(groups: Groups, sides: Sequence[Side], target: Target) -> Compared:
    """What differs between the sides, and the verdicts; without curves and samples."""
    from minigpt_cli.display.comparison import Compared
    from minigpt_cli.evaluation.comparison import by_kind, by_position, compare_pairs, most_different

    waiting.show("comparing character by character")
    text = sides[0].scores[0].text.decode()
    return Compared(
        text=_scored_text(groups, sides, target),
        sides=sides,
        costs=[(runs[0].record.n_params, sum(_spent(run, "elapsed_s") for run in runs) / len(runs)) for _, runs in groups],
        pairs=compare_pairs(sides),
        differences=shown_differences(differences([runs for _, runs in groups])),
        kinds=by_kind(sides, text),
        positions=by_position(sides),
        passages=most_different(sides[0], sides[1], text),
    )


def scored(groups: Groups, target: Target, device: str) -> list[Side]:
    """Every run scored on the same text."""
    from minigpt_cli.evaluation.comparison import Side
    from minigpt_cli.evaluation.eval_target import check_common_text
    from minigpt_cli.evaluation.evaluate_run import evaluate_run

    check_common_text([run for _, runs in groups for run in runs], target)

    def evaluated(run: Run) -> Evaluation:
        with console.progress("reading the runs") as advance:
            of_run = replace(target, ckpt=run.checkpoint or target.ckpt)
            return evaluate_run(run, of_run, device=device_chooser(device), advance=partial(advance, f"scoring {run.label}"))

    sides = []
    for name, runs in groups:
        evaluations = [evaluated(run) for run in runs]
        for notice in (line for evaluation in evaluations for line in evaluation.notices):
            console.warn(notice)
        sides.append(Side(name, tuple(evaluation.score for evaluation in evaluations)))
    return sides


def _scored_text(groups: Groups, sides: Sequence[Side], target: Target) -> str:
    """The text that was scored, with its size and hash, and how it was read unless as usual."""
    name, score = text_of(groups[0][1][0], target), sides[0].scores[0]
    windows = f"; {format.windows(target.stride, target.recent)}" if target.stride or target.recent else ""
    parts = format.parts_alone(score.n_answers, score.n_documents)
    return f"{name}{parts}: {score.n_chars:,} characters, sha256 {score.text_sha256[:12]}{windows}"


def _curves(groups: Groups, x: str) -> list[Curve]:
    """Validation curves in nats per character, one for each side that has any; several checkpoints of one run have one."""
    sides = {tuple(run.dir for run in runs): (name if len(runs) > 1 else runs[0].name, runs) for name, runs in groups}
    return [curve for name, runs in sides.values() if (curve := mean_of_runs(name, runs, x, "nats-per-char")).xs]


def _spent(run: Run, what: Literal["elapsed_s", "tokens_seen"]) -> float:
    """Seconds or tokens of the training; of a kept step those until then, between the evaluations around it."""
    if run.checkpoint is None or not run.checkpoint.isdecimal():
        return float(getattr(run.record, what))
    import numpy as np

    points = [(0, 0.0), *((event.step, float(getattr(event, what))) for event in run.metrics())]
    steps, amounts = zip(*points, strict=True)
    return float(np.interp(int(run.checkpoint), steps, amounts))


def _write_plot(path: Path, found: Compared, *, dark: bool) -> None:
    if path.suffix.lower() != ".html":
        from minigpt_cli.display.charts import save_chart

        save_chart(path, found.curves, x_label=found.x, y_label="validation loss (nats per character)", dark=dark)
        return
    from minigpt_cli.display.pages.comparison import comparison_page
    from minigpt_cli.storage.atomic_io import check_parent, write_atomic

    check_parent(path)
    write_atomic(path, comparison_page(found))


def _samples(groups: Groups, prompt: str, ckpt: str, seed: int) -> list[tuple[str, str]]:
    """The text that the first run of each side writes after the prompt, with the same seed; its answer if it was trained on chats."""
    from minigpt_cli.commands.generate import question
    from minigpt_cli.data.chat import learned_chats
    from minigpt_cli.generation.engine import GenerationRequest
    from minigpt_cli.generation.open_run import open_model

    out = []
    for _, runs in groups:
        loaded = open_model(runs[0], runs[0].checkpoint or ckpt)
        asked, ends = question(loaded, prompt) if learned_chats(runs[0].record) else (prompt, loaded.ends)
        request = GenerationRequest(loaded.prompt_ids(asked), max_new_tokens=_SAMPLE_TOKENS, seed=seed, ends=ends)
        out.append((runs[0].label, "".join(step.text for step in loaded.steps(request))))
    return out


def document(found: Compared, groups: Groups) -> dict[str, Any]:
    """The JSON document. `p_value` is adjusted for the number of pairs, and the verdict depends on it."""
    score = found.sides[0].scores[0]
    content: dict[str, Any] = {
        "text_sha256": score.text_sha256,
        "n_chars": score.n_chars,
        "n_answers": score.n_answers,
        "runs": [
            _run_document(side, run, run_score) for side, (_, runs) in zip(found.sides, groups, strict=True)
            for run, run_score in zip(runs, side.scores, strict=True)
        ],
        "groups": [
            {"group": side.name, "runs": [run.label for run in runs], **asdict(side.group), "ci95": list(side.ci95)}
            for side, (_, runs) in zip(found.sides, groups, strict=True)
            if len(runs) > 1
        ],
        "pairs": [pair_document(pair) for pair in found.pairs],
        "differences": differences([runs for _, runs in groups]),
        "by_kind": [{"kind": p.name, "share": p.share, "nats_per_char": _by_name(found.names, p)} for p in found.kinds],
        "by_position": [{"tokens_before": p.name, "share": p.share, "nats_per_char": _by_name(found.names, p)} for p in found.positions],
        "passages": [{"start": p.start, "text": p.text, "delta_nats_per_char": p.delta} for p in found.passages],
    }  # fmt: skip
    if found.prompt is not None:
        content["prompt"] = found.prompt
        content["samples"] = [{"run": name, "text": text} for name, text in found.samples]
    return content


def _by_name(names: Sequence[str], part: Part) -> dict[str, float]:
    return dict(zip(names, part.nats_per_char, strict=True))


def _run_document(side: Side, run: Run, score: Score) -> dict[str, Any]:
    own = {"run": run.label, "group": side.name if len(side.scores) > 1 else None, "nats_per_char": score.nats_per_char}
    own |= {"ci95": list(score.ci95)} | {name: getattr(score, name) for name in ("nats_per_token", "bits_per_byte", "n_tokens")}
    of_record = ("arch", "tokenizer", "n_params", "n_active_params")
    spent = {"tokens_seen": round(_spent(run, "tokens_seen")), "elapsed_s": _spent(run, "elapsed_s")}
    return own | {name: getattr(run.record, name) for name in of_record} | spent


def pair_document(pair: Pair) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "delta_nats_per_char": pair.test.mean,
        "ci95": [pair.test.low, pair.test.high],
        "p_value": pair.p_holm,
        "p_value_unadjusted": pair.test.p_value,
        "verdict": pair.verdict,
        "question": pair.question,
        "block_chars": pair.test.block,
        "further_seeds": pair.outlook.further_seeds if pair.outlook else None,
        "text_factor": pair.outlook.text_factor if pair.outlook else None,
    }
