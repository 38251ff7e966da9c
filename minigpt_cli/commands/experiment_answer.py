"""The answer of an experiment: the scores of its runs, what else it measures, and the verdicts, on the screen, as a page and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt_cli.commands.compare import pair_document
from minigpt_cli.commands.plot import mean_of_runs
from minigpt_cli.commands.samples import runs_dir_flag
from minigpt_cli.commands.sweeping import Group
from minigpt_cli.display import console, experiments, format, waiting
from minigpt_cli.display.experiments import Answer, Chart
from minigpt_cli.display.tables import Column
from minigpt_cli.display.terminal_chart import Curve
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation.comparison import Side, compare_pairs
from minigpt_cli.evaluation.eval_target import Target
from minigpt_cli.evaluation.evaluate_run import evaluate_run
from minigpt_cli.events import StopReason
from minigpt_cli.experiments.catalog import Experiment
from minigpt_cli.runstore.directory import Run


@dataclass(frozen=True)
class _Recipe:
    """A recipe with its runs."""

    label: str
    what: str
    runs: list[Run]  # those that are finished, else those that have begun
    side: Side | None  # None without a final score
    note: str
    reads_ahead: bool  # it has no mask, so its loss cannot be compared

    @property
    def broke(self) -> bool:
        """Whether training did harm: it diverged, or ended above the loss of guessing every token alike."""
        return self.side is None or self.side.scores[0].nats_per_token > math.log(self.runs[0].record.vocab_size)


@dataclass(frozen=True)
class _Measured:
    """What is found besides the scores: columns by name with a cell for each recipe, sentences, and numbers for --json."""

    sentences: list[str]
    columns: Mapping[str, Sequence[str]]
    facts: Mapping[str, Any]
    chart: Chart | None = None  # in place of the validation curves
    table: tuple[Sequence[Column], Sequence[Sequence[str]]] | None = None  # in place of the scores


def show_answer(group: Group, experiment: Experiment, group_id: str, wanted: Mapping[str, Sequence[str]], html: Path | None) -> None:
    """Print what the runs of each recipe say, and write the page. Raises MiniGPTError where no run has a final score."""
    waiting.show("reading the runs")
    recipes = [_recipe(group, experiment, label, names) for label, names in wanted.items()]
    scored = [recipe for recipe in recipes if recipe.side]
    if not scored:
        raise MiniGPTError(f"no run of the group {group_id} has a final score: see minigpt runs list")
    sides = {recipe.label: recipe.side for recipe in scored if recipe.side and not recipe.reads_ahead}
    couples = [(sides[other], side) for label, side in sides.items() if (other := experiment.partner(label)) in sides]
    pairs = compare_pairs(list(sides.values()), pairs=couples)
    found = _MEASURES[experiment.measure](experiment, recipes, scored)
    sentences = [*experiments.pair_sentences(pairs), *found.sentences]
    if any(recipe.reads_ahead for recipe in scored):
        sentences.append(
            "† Without the mask a model reads the character that it is to predict: its loss cannot be compared, and it cannot write."
        )
    columns, rows = found.table or _scores(recipes, found.columns)
    scores = [(recipe.side.name, recipe.side.group.mean, recipe.side.ci95) for recipe in scored if recipe.side]
    curves = [mean_of_runs(recipe.label, recipe.runs, "tokens", "nats-per-char") for recipe in scored]
    chart = found.chart or Chart(curves, "tokens", "nats per character of the validation text")
    answer = Answer(experiment.question, columns, rows, sentences, scores, chart, _next_command(experiment, group_id, recipes))
    if group.context.json:
        document: dict[str, Any] = {
            "event": "experiment",
            "experiment": experiment.name,
            "group": group_id,
            "question": experiment.question,
        }
        document |= {"runs": [_run_document(recipe, run) for recipe in recipes for run in recipe.runs]}
        document |= {"verdicts": [pair_document(pair) for pair in pairs], **found.facts, "answer": sentences, "next": answer.next}
        console.write_json(document, indent=None)
    else:
        experiments.print_answer(answer)
    if html is not None:
        from minigpt_cli.display.pages.experiment import experiment_page
        from minigpt_cli.storage.atomic_io import write_atomic

        write_atomic(html, experiment_page(answer))
        console.notice(f"wrote {html}")


def _recipe(group: Group, experiment: Experiment, label: str, names: Sequence[str]) -> _Recipe:
    runs = [run for name in names if (run := Run(group.context.store.dir / name)).dir.exists()]
    done = [run for run in runs if run.record.status == "finished"]
    target = Target(ckpt="last" if experiment.measure in ("rate", "overfit") else "best")
    try:
        scores = tuple(evaluate_run(run, target).score for run in done)
        note = "" if len(done) == len(names) else f"{len(done)} of {len(names)} runs"
    except MiniGPTError as error:
        scores, note = (), str(error)
    if any(run.record.stop_reason is StopReason.DIVERGED for run in runs):
        note = f"diverged at step {min(run.record.stop_step for run in runs):,}"
    ahead = "mask" in experiment.recipes[label].get("without", "").split("+")
    name = f"{label} †" if ahead else label
    return _Recipe(name, experiment.recipes[label].get("what", ""), done or runs, Side(name, scores) if scores else None, note, ahead)


def _next_command(experiment: Experiment, group_id: str, recipes: Sequence[_Recipe]) -> str:
    """The command to type next, with names of runs."""
    ranked = sorted((r for r in recipes if r.runs), key=lambda r: r.side.group.mean if r.side else math.inf)
    best, other = ranked[0].runs[0], next((r for r in recipes if r.runs and r != ranked[0]), ranked[0]).runs[0]
    names: dict[str, Any] = {"best": best.name, "other": other.name, "all": f"{group_id}~*"}
    names = {key: format.quoted(name) for key, name in names.items()} | {"runs": [format.quoted(r.runs[0].name) for r in recipes if r.runs]}
    return experiment.next.format(**names) + runs_dir_flag(best)


def _scores(recipes: Sequence[_Recipe], more: Mapping[str, Sequence[str]]) -> tuple[list[Column], list[list[str]]]:
    """The table of scores in the order of the recipes."""
    columns = [Column("", most=24), Column("what changes", 5, most=40), Column("nats/char", right=True), Column("95 %", 2, right=True)]
    columns += [Column(name, 1, right=True) for name in more]
    columns += [Column("seeds", 4, right=True), Column("parameters", 2, right=True), Column("time", 3, right=True), Column("", 1)]
    rows = []
    for number, recipe in enumerate(recipes):
        side, runs = recipe.side, recipe.runs
        cells = [format.loss(side.group.mean), format.plus_minus(side.group.mean, side.ci95)] if side else ["-", ""]
        cells += [cell[number] for cell in more.values()]
        seconds = sum(run.record.elapsed_s for run in runs) / max(1, len(runs))
        costs = [format.count(runs[0].record.n_params), format.duration(seconds)] if runs else ["", ""]
        rows.append([recipe.label, recipe.what, *cells, str(len(runs)) if len(runs) > 1 else "", *costs, recipe.note])
    return columns, rows


def _run_document(recipe: _Recipe, run: Run) -> dict[str, Any]:
    record, scores = run.record, dict(zip((run.name for run in recipe.runs), recipe.side.scores if recipe.side else (), strict=False))
    score = scores.get(run.name)
    content: dict[str, Any] = {"run": run.name, "recipe": recipe.label, "status": record.status, "stop_reason": record.stop_reason}
    content |= {"nats_per_char": score.nats_per_char if score else None, "ci95": list(score.ci95) if score else None}
    return content | {name: getattr(record, name) for name in ("n_params", "n_active_params", "stop_step", "tokens_seen", "elapsed_s")}


# ---- what an experiment measures besides the scores


def _nothing(experiment: Experiment, recipes: Sequence[_Recipe], scored: Sequence[_Recipe]) -> _Measured:
    return _Measured([], {}, {})


def _overfit(experiment: Experiment, recipes: Sequence[_Recipe], scored: Sequence[_Recipe]) -> _Measured:
    from minigpt_cli.evaluation.experiments import BY_HEART, learned_by_heart

    run = scored[0].runs[0]
    found, reached = learned_by_heart(run)
    curves = [mean_of_runs(label, [run], "steps", y) for label, y in (("training text", "train"), ("validation text", "val"))]
    columns = {"train": [f"{found.train_nats_per_char:.4f}"]}
    facts = {"memorisation": asdict(found), "by_heart_at_step": reached and reached.step}
    n_chars = run.record.corpus.splits["train"].n_chars if run.record.corpus else 1
    sentences = experiments.by_heart_sentences(found, reached, BY_HEART, math.log(n_chars) / run.config.model.block_size)
    return _Measured(sentences, columns, facts, Chart(curves, "steps", "nats per token"))


def _dropout(experiment: Experiment, recipes: Sequence[_Recipe], scored: Sequence[_Recipe]) -> _Measured:
    from minigpt_cli.evaluation.experiments import both_modes

    modes = {recipe.label: both_modes(recipe.runs[0]) for recipe in scored}
    names = ("train, dropout on", "train, dropout off")
    columns = {name: [f"{modes[r.label][i]:.4f}" if r.label in modes else "-" for r in recipes] for i, name in enumerate(names)}
    facts = {"training_nats_per_token": {label: {"dropout_on": on, "dropout_off": off} for label, (on, off) in modes.items()}}
    return _Measured(experiments.dropout_sentences(modes), columns, facts)


def _data(experiment: Experiment, recipes: Sequence[_Recipe], scored: Sequence[_Recipe]) -> _Measured:
    from minigpt_cli.evaluation.data_law import fit_data_law

    sizes = {r.label: r.runs[0].record.corpus.splits["train"].n_chars for r in scored if r.runs[0].record.corpus}
    columns = {"characters": [f"{sizes[r.label]:,}" if r.label in sizes else "" for r in recipes]}
    sides = [r.side for r in scored if r.side]
    xs = [sizes[side.name] for side in sides]
    try:
        law = fit_data_law(xs, [[score.char_nats for score in side.scores] for side in sides])
    except ValueError as error:
        return _Measured([f"{error}."], columns, {"law": None})
    fitted = [law.largest * 2 * i / 60 for i in range(1, 61)]
    measured = [side.group.mean for side in sides]
    curves = [Curve("measured", xs, measured), Curve("law, to twice the text", fitted, [law.at(n) for n in fitted])]
    chart = Chart(curves, "characters of training text", "nats per character of the validation text")
    return _Measured(experiments.law_sentences(law), columns, {"law": asdict(law)}, chart)


def _rate(experiment: Experiment, recipes: Sequence[_Recipe], scored: Sequence[_Recipe]) -> _Measured:
    broke = [recipe.label for recipe in recipes if recipe.broke]
    rates = [(recipe.label, recipe.side.group.mean if recipe.side else None) for recipe in recipes]
    return _Measured(experiments.rate_sentences(rates, broke), {}, {"broke": broke})


def _sampling(experiment: Experiment, recipes: Sequence[_Recipe], scored: Sequence[_Recipe]) -> _Measured:
    from minigpt_cli.evaluation.experiments import COPY, writings
    from minigpt_cli.generation.sampling import Sampling

    waiting.show("writing with every setting")
    settings = [Sampling(temperature=t, top_k=k) for k in experiment.top_ks for t in experiment.temperatures]
    labels = [f"temperature {s.temperature:g}" + (f" and top-k {s.top_k}" if s.top_k else "") for s in settings]
    found = writings(scored[0].runs[0], settings)
    rows = [experiments.writing_row(setting, writing) for setting, writing in zip([*settings, None], found, strict=True)]
    n = len(experiment.temperatures)
    curves = [
        Curve(f"top-k {k}" if k else "all tokens", experiment.temperatures, [w.nats_per_char or 0.0 for w in found[i * n : (i + 1) * n]])
        for i, k in enumerate(experiment.top_ks)
    ]
    facts = {"settings": [{"setting": label, **asdict(writing)} for label, writing in zip([*labels, "unseen text"], found, strict=True)]}
    chart = Chart(curves, "temperature", "nats per character of what is written")
    return _Measured(experiments.writing_sentences(labels, found, COPY), {}, facts, chart, (experiments.WRITING_COLUMNS, rows))


_MEASURES = {"": _nothing, "overfit": _overfit, "dropout": _dropout, "data": _data, "rate": _rate, "sampling": _sampling}
