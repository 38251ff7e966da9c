"""What a sweep or a search found: its best values, whether they are better than the next, and how to train with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_cli.commands.config_fields import settings, show_value
from minigpt_cli.commands.samples import runs_dir_flag
from minigpt_cli.commands.sweeping import Group, GroupResults, swept_values
from minigpt_cli.display import format, waiting
from minigpt_cli.display.group_screen import GroupRow, print_group
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.directory import Run

if TYPE_CHECKING:
    from minigpt_cli.evaluation.comparison import Pair, Side


@dataclass(frozen=True)
class _Combination:
    """The runs with one combination of the swept values, one for each seed."""

    name: str  # "lr 0.003, n_layer 2"
    values: tuple[str, ...]
    runs: list[Run]

    @property
    def nats_per_char(self) -> float:
        return sum(run.record.best.nats_per_char for run in self.runs if run.record.best) / len(self.runs)


def show_result(group: Group, results: GroupResults, looks: int = 1) -> None:
    """Print the combinations best first, the verdict on the first two, the command for the best, and what is not settled; of seeds alone,
    which are one recipe, their mean.

    `looks`: how often --seeds auto may look at the verdict.
    """
    names, found = _found(group, results)
    if not found:
        return
    waiting.show("comparing the best two")
    sides = _sides(found)
    if results.seeded and names == ("seed",):
        lines = _mean_lines(found, sides)
        command = f"minigpt runs leaderboard --fold-seeds --where group={format.quoted(results.group)}{runs_dir_flag(found[0].runs[0])}"
    else:
        lines = [("best", _best_line(found[0])), *_verdict_lines(sides, looks)]
        lines += [("open", line) for line in _open_questions(found, names)]
        command = _train_command(group, dict(zip(names, found[0].values, strict=True)))
    print_group(names, [_row(combination, side) for combination, side in zip(found, sides, strict=True)], lines, command)


def verdict(group: Group, results: GroupResults, looks: int) -> Pair | None:
    """The verdict on the best two combinations; None where they cannot be compared."""
    return _verdict(_sides(_found(group, results)[1]), looks)


def _found(group: Group, results: GroupResults) -> tuple[tuple[str, ...], list[_Combination]]:
    """The settings in which the group's recipes differ, and its combinations, best first."""
    names = tuple(name for name in results.swept if name != "seed" or not results.seeded) or results.swept
    return names, _combinations([run for run in group.context.store.runs() if run.record.group == results.group], names)


def _combinations(runs: Sequence[Run], names: Sequence[str]) -> list[_Combination]:
    """The scored runs by their values, best first; what training measured counts only among runs without a final score."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.record.best is not None:
            groups[swept_values(run.config, names)].append(run)
    combinations = [
        _Combination(", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True) if value), values, group)
        for values, group in groups.items()
    ]
    return sorted(combinations, key=lambda found: (not all(_is_final(run) for run in found.runs), found.nats_per_char))


def _is_final(run: Run) -> bool:
    return run.record.best is not None and run.record.best.whole_split


def _sides(found: Sequence[_Combination]) -> list[Side | None]:
    """The combinations as sides of a comparison; None for one that has no final score."""
    from minigpt_cli.evaluation.comparison import Side
    from minigpt_cli.evaluation.evaluate_run import evaluate_run

    sides: list[Side | None] = []
    for combination in found:
        finals = [run for run in combination.runs if _is_final(run)]
        try:
            scores = tuple(evaluate_run(run).score for run in finals)
        except MiniGPTError:  # damaged weights: without a verdict
            scores = ()
        sides.append(Side(combination.name, scores) if scores and len(finals) == len(combination.runs) else None)
    return sides


def _row(combination: _Combination, side: Side | None) -> GroupRow:
    runs = combination.runs
    note = "given up early" if runs[0].record.stop_reason is StopReason.PRUNED else "" if side else "not finished"
    spread = format.plus_minus(side.group.mean, side.ci95) if side else ""
    elapsed_s = sum(run.record.elapsed_s for run in runs) / len(runs)
    return GroupRow(combination.values, combination.nats_per_char, spread, len(runs), elapsed_s, note)


def _best_line(best: _Combination) -> str:
    seeds = f", mean of {len(best.runs)} seeds" if len(best.runs) > 1 else f", run {best.runs[0].name}"
    return f"{best.name}: {best.nats_per_char:.4f} nats per character{seeds}"


def _mean_lines(seeds: Sequence[_Combination], sides: Sequence[Side | None]) -> list[tuple[str, str]]:
    """The mean of runs that differ in their seed alone, with its interval where all have a final score."""
    from minigpt_cli.evaluation.comparison import Side

    mean, scores = sum(seed.nats_per_char for seed in seeds) / len(seeds), [score for side in sides if side for score in side.scores]
    spread = f" {format.plus_minus(mean, Side('', tuple(scores)).ci95)}" if all(sides) else ""
    return [
        ("mean", f"{mean:.4f}{spread} nats per character, of {len(seeds)} seed{'s' * (len(seeds) > 1)}"),
        ("", "seeds are one recipe: the lowest is the luckiest, no better than the others"),
    ]


def _verdict(sides: Sequence[Side | None], looks: int) -> Pair | None:
    """The verdict on the first two; None where one has no final score. Raises MiniGPTError if they were scored on different texts."""
    from minigpt_cli.evaluation.comparison import compare_pairs

    if len(sides) < 2 or sides[0] is None or sides[1] is None:
        return None
    return compare_pairs([sides[0], sides[1]], looks)[0]


def _verdict_lines(sides: Sequence[Side | None], looks: int) -> list[tuple[str, str]]:
    """The verdict on the best and the next, and its scope."""
    from minigpt_cli.display.comparison import outlook_sentence, scope_lines, verdict_sentence

    try:
        pair = _verdict(sides, looks)
    except MiniGPTError as error:  # a sweep over how the text is read
        return [("open", str(error))]
    if pair is None:
        return []
    lines = [("verdict", verdict_sentence(pair))]
    if looks > 1:
        lines.append(("", f"p is multiplied by {looks}, since --seeds auto may look at the verdict so often; the interval is of one look."))
    if pair.verdict == "indistinguishable":
        lines.append(("open", (pair.outlook and outlook_sentence(pair.outlook)) or "the best two are a statistical tie: choose either"))
    return lines + [("", line) for line in scope_lines([pair])]


def _open_questions(found: Sequence[_Combination], names: Sequence[str]) -> list[str]:
    """Ranges whose best value is at an end, and not the last that is possible: a value beyond may be better."""
    lines = []
    for position, name in enumerate(names):
        try:
            tried = sorted({float(combination.values[position]) for combination in found})
            best = float(found[0].values[position])
        except ValueError:  # a choice of words
            continue
        bounds = {getattr(bound, end, None) for bound in settings()[name].info.metadata for end in ("ge", "le")}
        if name != "seed" and len(tried) > 1 and best in {tried[0], tried[-1]} - bounds:
            end, beyond = ("largest", "larger") if best == tried[-1] else ("smallest", "smaller")
            lines.append(f"{name} {found[0].values[position]} is the {end} value that was tried: a {beyond} one may be better")
    return lines


def _train_command(group: Group, best: dict[str, str]) -> str:
    """The command that trains one run with the best values, and with everything else as the group has it."""
    words = ["minigpt", "train"]
    flags = {**group.flags, **{name: value for name, value in best.items() if value}}
    words += [str(source) for source in flags.pop("source", ())]
    paths: dict[str, str | Path | None] = {
        "--preset": group.preset,
        "--config": group.file,
        "--init-from": group.context.origin.what if group.context.origin else None,
    }
    for flag, path in paths.items():
        words += [flag, str(path)] if path is not None else []
    for name, value in flags.items():
        words += _typed(name, value)
    return " ".join(map(format.quoted, words))


def _typed(name: str, value: Any) -> list[str]:
    """A setting as words of a command line."""
    flag = settings()[name].flag
    if settings()[name].annotation is bool:
        return [flag if value in (True, "on", "true", "1") else f"--no-{flag[2:]}"]
    if isinstance(value, list | tuple):
        return [word for item in value for word in (flag, str(item))]
    return [flag, value if isinstance(value, str) else show_value(value)]
